/* SPDX-License-Identifier: MIT
 *
 * iov.h: a window over a list of buffers. Passed by value; owns nothing. Slicing costs nothing and never
 * copies the list; `iov_export` makes a plain array for the kernel.
 */
#ifndef BASE_IOV_H
#define BASE_IOV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct iov {
    const struct iovec *vec;   /* list, owned by whoever made the first window */
    size_t cnt;                /* elements of vec */
    size_t skip_bytes;         /* bytes to leave out at the start of vec[0]; < vec[0].iov_len unless len_bytes is 0 */
    uint64_t len_bytes;        /* bytes in the window */
};

/* Window over all of vec. */
struct iov iov_of(const struct iovec *vec, size_t cnt);
/* Window over one buffer; *slot is written and must outlive the window. */
static inline struct iov iov_one(struct iovec *slot, const void *buf, size_t len_bytes)
{
    slot->iov_base = (void *)(uintptr_t)buf;
    slot->iov_len = len_bytes;
    return (struct iov){ slot, 1, 0, len_bytes };
}
/* Part [off, off+len) of the window; the range must lie inside. */
struct iov iov_slice(struct iov v, uint64_t off_bytes, uint64_t len_bytes);
/* Elements that iov_export would need. */
size_t iov_count(struct iov v);
/* Writes at most max elements into out, returns how many; *ret_len (may be NULL) = bytes they cover. */
size_t iov_export(struct iov v, struct iovec *out, size_t max, uint64_t *ret_len);
void iov_set(struct iov v, uint8_t byte);                                  /* fill */
void iov_from_buf(struct iov v, const void *buf, size_t len_bytes);        /* scatter; len <= v.len_bytes */
void iov_to_buf(struct iov v, void *buf, size_t len_bytes);                /* gather */
bool iov_is_zero(struct iov v);                                            /* all bytes zero? */
bool iov_is_aligned(struct iov v, size_t mem_align);                       /* every base and length a multiple? */
bool mem_is_zero(const void *buf, size_t len_bytes);                       /* vectorised */

#endif
