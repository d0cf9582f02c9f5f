/* SPDX-License-Identifier: MIT
 *
 * file_probe.h: the parts of file_probe.c that decide from text and numbers alone, for its test. Private to stor/.
 */
#ifndef STOR_FILE_PROBE_H
#define STOR_FILE_PROBE_H

#include "stor/file_priv.h"

struct probe_fs {
    bool local;                  /* fstat never waits for another machine */
    struct { bool growth, crash; } buffered, direct;     /* traits zero_growth and zero_crash */
    bool serial_growth;
    bool enospc_early;
    bool byte_direct;            /* O_DIRECT asks for no alignment */
};

/* Asked of ext4 alone: how data and journal are ordered (unknown: also without a journal), and whether the file maps extents. */
enum probe_ext4_mode { PROBE_EXT4_UNKNOWN, PROBE_EXT4_ORDERED, PROBE_EXT4_WRITEBACK };
struct probe_ext4 { enum probe_ext4_mode mode; bool extents; };
/* What the file system with this magic number (statfs) promises under this kernel release (uname). */
void probe_fs(uint64_t magic, struct probe_ext4 ext4, const char *release, struct probe_fs *ret);
/* Alignment that O_DIRECT needs, found by reading the beginning of the file: for kernels that do not tell. */
void probe_by_reading(int fd, uint32_t *ret_block, uint32_t *ret_mem);
/* What the text of /proc/fs/ext4/DEVICE/options says. */
enum probe_ext4_mode probe_ext4_options(const char *options);
/* Is "6.1.0-25-amd64" at least major.minor? false when it cannot be read. */
bool probe_kernel_at_least(const char *release, unsigned want_major, unsigned want_minor);

#endif
