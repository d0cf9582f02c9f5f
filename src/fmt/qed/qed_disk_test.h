/* SPDX-License-Identifier: MIT
 *
 * qed_disk_test.h: what the tests of the write side of QED share: an image on the disk of q2_disk_test.h, and a guest. For unit tests only.
 */
#ifndef QED_DISK_TEST_H
#define QED_DISK_TEST_H

#include "fmt/qcow2/q2_disk_test.h"
#include "fmt/qed/qed_image.h"

#define C 4096ull
#define T 2u
#define SPAN (1024 * C)
#define SIZE (4 * SPAN)
#define BASE 7u                                   /* what a backing image would show */

bool marked(const uint8_t *bytes);
/* A fresh image; what a backing image would show is BASE. */
void make(struct co *co, const char *backing);
struct qed_image *reopen_as(struct co *co, bool read_only, bool unclean_ok);
struct qed_image *reopen(struct co *co, bool read_only);
int shut(struct co *co, struct qed_image *q);
/* The process and the power are gone; what was flushed stays. */
void crash(struct co *co, struct qed_image *q);
/* Nothing is open. */
struct fmt_check_result checked(struct co *co);
bool sound(struct co *co);

/* ---- a guest ---- */
int write_new(struct co *co, struct qed_image *q, struct fmt_write *w, uint8_t fill);
int g_put(struct co *co, struct qed_image *q, uint64_t off, uint64_t len, uint8_t fill);
bool holds(struct co *co, struct qed_image *q, uint64_t off, uint64_t len, uint8_t fill);
enum fmt_kind kind_at(struct co *co, struct qed_image *q, uint64_t off, uint64_t *ret_host);
int flush(struct co *co, struct qed_image *q);
int scrub(struct co *co, struct qed_image *q, unsigned fix, struct fmt_check_result *ret);

#endif
