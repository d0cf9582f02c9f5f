/* SPDX-License-Identifier: MIT
 *
 * base.c: dirty bitmaps and zero detection.
 *
 * Purpose      See the table at the end.
 * Owns         Nothing.
 * Invariants   None.
 * Order        None.
 * Concurrency  One thread.
 * Failure      None.
 * Tests        tests/bench/micro_test.py
 */
#include "micro.h"

#include <stdlib.h>
#include <string.h>

#include "base/dirty.h"

#define TIB (UINT64_C(1) << 40)

static uint64_t scattered(uint64_t i) { return i * UINT64_C(0x9e3779b97f4a7c15) % TIB & ~UINT64_C(4095); }

static void dirty_set_4k(struct co *co, uint64_t n)
{
    struct dirty *d;
    OK(dirty_new(TIB, 16, NULL, &d));
    for (uint64_t off = 0; off < TIB; off += UINT64_C(32768) << 16)     /* every chunk is there */
        dirty_set(d, off, 1);
    for (uint64_t i = 0; i < n; i++)
        dirty_set(d, scattered(i), 4096);
    dirty_free(d);
}

/* 4096 dirty granules in 1 TiB; one look goes to the next of them. */
static void dirty_scan(struct co *co, uint64_t n)
{
    struct dirty *d;
    uint64_t at = 0, end = 0;
    OK(dirty_new(TIB, 16, NULL, &d));
    for (uint64_t off = 0; off < TIB; off += TIB / 4096)
        dirty_set(d, off, 1);
    for (uint64_t i = 0; i < n; i++)
        if (!dirty_next(d, end, TIB, &at, &end))
            end = 0;
    dirty_free(d);
}

static void zero(uint64_t n, size_t len, bool data)
{
    uint8_t *buf = calloc(1, len);
    ASSERT(buf);
    if (data)
        buf[len / 2] = 1;
    for (uint64_t i = 0; i < n; i++)
        ASSERT(mem_is_zero(buf, len) == !data);
    free(buf);
}

static void zero_64k(struct co *co, uint64_t n) { zero(n, 65536, false); }
static void zero_4k(struct co *co, uint64_t n) { zero(n, 4096, false); }
static void data_4k(struct co *co, uint64_t n) { zero(n, 4096, true); }

const struct micro micro_base[] = {
    { "dirty-set", "4 KiB are marked in a dirty bitmap of 1 TiB", dirty_set_4k },
    { "dirty-scan", "the next of 4096 dirty places of 1 TiB is found", dirty_scan },
    { "zero-64k", "64 KiB are found to be zeros", zero_64k },
    { "zero-4k", "4 KiB are found to be zeros", zero_4k },
    { "zero-4k-data", "4 KiB of zeros with one byte in their middle are found to be data", data_4k },
    { NULL },
};
