/* SPDX-License-Identifier: MIT
 *
 * q2_disk_test.h: what the tests of the write side share: a disk with a volatile cache that outlives its image and
 * fails as told, and a guest that reads and writes through fmt_ops. For unit tests only.
 */
#ifndef Q2_DISK_TEST_H
#define Q2_DISK_TEST_H

#include "stor/stor_test.h"

#include "fmt/qcow2/q2_alloc_priv.h"

#define DISK_CAP (64u << 20)

/* One at a time. */
struct disk {
    uint8_t *bytes, *durable;            /* as the cache shows it; as the last flush left it */
    uint64_t len, durable_len;
    unsigned flushes, writes;            /* since disk_reset or disk_mark */
    bool fixed_length;                   /* a device */
    bool holes;                          /* blocks of zeros are holes; else the disk has none */
    bool hold;                           /* requests that arrive now wait until this is false */
    /* Asked before each request ('R', 'W', 'F', 'T', 'D'iscard, 'Z'ero). < 0: its result. buf: of a write. */
    int (*hook)(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf);
    bool land;                           /* a write that the hook fails has its effect all the same */
};
extern struct disk disk;

int disk_setup(void **state);            /* for a group: takes and gives the memory */
int disk_teardown(void **state);
void disk_reset(void);                   /* empty, nothing fails */
void disk_mark(void);
struct stor *disk_open(bool read_only);  /* a store over the disk, to be taken over by an image */
be64 *disk_be64(uint64_t off);           /* the word at `off` of the bytes */

/* ---- images ---- */
/* host: makes and opens an external data file. */
struct make { uint32_t version, refcount_bits; uint64_t cluster_size, size; bool lazy, sub; const struct fmt_host *host; };
void img_make(struct co *co, const struct make *m);
struct opening { bool read_only, check, no_punch; uint64_t frontier_bytes, cache_bytes; signed char lazy; bool unclean; uint64_t bitmap_region;
    unsigned overlap; void (*corrupted)(void *arg, const struct fmt_corruption *c); const struct fmt_host *host; };
int img_try_open(struct co *co, const struct opening *o, struct fmt_image **ret);
struct q2_image *img_open(struct co *co, const struct opening *o);       /* checks success */
int img_close(struct co *co, struct q2_image *q);
/* The power fails: what was not flushed is gone, and so is the process. Nothing is held up or fails any more. */
void img_crash(struct co *co, struct q2_image *q);
/* The same with everything that was written. */
void img_kill(struct co *co, struct q2_image *q);
/* Checks the image on the disk (nothing open): corruptions and check errors; *ret_leaks may be NULL. */
uint64_t img_faults(struct co *co, uint64_t *ret_leaks);
/* Where the entry of a guest offset lies on the disk (0: no table), and where the L1 entry does. */
uint64_t img_l2_at(uint64_t guest);
uint64_t img_l1_at(uint64_t guest);

/* ---- a guest ---- */
/* Writes len bytes of `fill`; the parts around it as fmt.h asks. */
int g_write(struct co *co, struct q2_image *q, uint64_t off, uint64_t len, uint8_t fill);
/* Whole clusters (the last may be short), compressed. */
int g_compress(struct co *co, struct q2_image *q, uint64_t off, uint64_t len, uint8_t fill);
int g_compress_bytes(struct co *co, struct q2_image *q, uint64_t off, uint64_t len, const uint8_t *bytes);
int g_read(struct co *co, struct q2_image *q, uint64_t off, uint64_t len, uint8_t *buf);
bool g_holds(struct co *co, struct q2_image *q, uint64_t off, uint64_t len, uint8_t fill);
int g_flush(struct co *co, struct q2_image *q);
/* Host offset of a guest offset by the tables in memory; 0: none. */
uint64_t g_host(struct co *co, struct q2_image *q, uint64_t off);

/* I1 of q2_alloc.c: every cluster below a->end is in one state, and its count fits that state. true: so it is. */
bool states_ok(struct co *co, struct q2_image *q);

#endif
