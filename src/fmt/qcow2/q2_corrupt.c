/* SPDX-License-Identifier: MIT
 *
 * q2_corrupt.c: metadata was found to be wrong while in use.
 *
 * Purpose      Stops the image before damage grows, leaves a mark on the disk, and tells whoever opened it (1.024, 1.113).
 * Owns         q->failed, q->told, q->why.
 * Invariants   K1  Of a writable image: requests are refused first, in memory; then the corrupt bit, durable; behind it nothing
 *                  is written any more (Q22). A pass that runs ends before the bit is written.
 *              K2  A read-only image is not changed and goes on. It is told of once.
 *              K3  While an image is unclean or checked, damage is the business of scrub and check: they tell and mend.
 * Order        Q22. If the bit cannot be written, nothing else is either: a crash at any step leaves the image marked, or as the last
 *              pass left it.
 * Concurrency  Home loop; suspends for the pass that runs and for the write.
 * Failure      None: -EIO is what it is called for.
 * Tests        q2_guard_test.c, tests/interop/test_overlap.py, tests/cli/corrupt_test.py
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#include "base/assert.h"
#include "fmt/qcow2/q2_image.h"

void q2_note(struct q2_image *q, uint64_t off, uint64_t bytes, const char *fmt, ...)
{
    va_list ap;
    if (q->why.text[0])
        return;
    va_start(ap, fmt);
    vsnprintf(q->why.text, sizeof q->why.text, fmt, ap);
    va_end(ap);
    q->why.off = off;
    q->why.bytes = bytes;
}

static void tell(struct q2_image *q, bool fatal, const char *what, uint64_t off)
{
    char text[300];
    bool noted = q->why.text[0];
    struct fmt_corruption c = { .text = text, .has_place = noted, .off = q->why.off, .bytes = q->why.bytes, .fatal = fatal };
    if (q->told)
        return;
    q->told = true;
    if (noted)
        snprintf(text, sizeof text, "%s", q->why.text);
    else
        snprintf(text, sizeof text, "%s %#" PRIx64 " cannot be right", what, off);
    if (q->opts.corrupted)
        q->opts.corrupted(q->opts.corrupted_arg, &c);
}

static void forget_note(struct q2_image *q) { q->why.text[0] = 0; }

/* Inside a struct section. */
static void mark(struct co *co, struct q2_image *q)
{
    if (q->g.version >= 3) {
        q->h.incompat |= Q2_INCOMPAT_CORRUPT;
        int r = q2_header_sync(co, q, 72, 80, META_B_HEADER);
        (void)r;                                 /* K1: refused in memory all the same */
    }
    meta_stop(q->meta, -EIO);
}

static int found(struct co *co, struct q2_image *q, const char *what, uint64_t off, bool locked)
{
    ASSERT_LOOP(q->im.home);
    if (q->check_mode || q->unclean || (!q->im.read_only && atomic_load(&q->failed))) {       /* K3 */
        forget_note(q);
        return -EIO;
    }
    if (q->im.read_only) {                       /* K2 */
        tell(q, false, what, off);
        forget_note(q);
        return -EIO;
    }
    atomic_store(&q->failed, true);              /* K1 */
    if (!locked)
        meta_struct_begin(co, q->meta);
    mark(co, q);
    if (!locked)
        meta_struct_end(q->meta);
    tell(q, true, what, off);
    return -EIO;
}

int q2_corrupt(struct co *co, struct q2_image *q, const char *what, uint64_t off) { return found(co, q, what, off, false); }
int q2_corrupt_locked(struct co *co, struct q2_image *q, const char *what, uint64_t off) { return found(co, q, what, off, true); }
