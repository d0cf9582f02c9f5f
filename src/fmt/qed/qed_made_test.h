/* SPDX-License-Identifier: MIT
 *
 * qed_made_test.h: QED images made at random, sound and damaged, and what a guest reads in them by their tables alone. For tests.
 */
#ifndef QED_MADE_TEST_H
#define QED_MADE_TEST_H

#include "base/prng.h"
#include "fmt/qed/qed_image.h"

#define MADE_C 4096ull                            /* cluster size */
#define MADE_CLUSTERS 160u                        /* bytes has room for so many; the image itself has fewer */

struct made {
    struct prng p;
    unsigned table;                               /* clusters of a table */
    unsigned tables;                              /* L1 entries that the size uses */
    bool damaged, holes, marked;
};
/* Writes an image into bytes, which are zeros: its length. */
uint64_t made_image(struct made *m, uint8_t *bytes);

/* Guest clusters that are looked at: some of each table. 1: absent or zero; known: it is not named as a table, too, so it may not change. */
struct made_guest { bool known; uint64_t kind; uint8_t bytes[MADE_C]; };
uint64_t made_count(const struct made *m, const uint8_t *bytes, uint64_t len);
/* free() the result. Pointers to what is no cluster of the file read as absent. */
struct made_guest *made_read(const struct made *m, const uint8_t *bytes, uint64_t len);
/* Does the guest read what it read before? *ret_at: the first cluster that differs. */
bool made_same(const struct made *m, const uint8_t *bytes, uint64_t len, const struct made_guest *before, uint64_t *ret_at);

/* The same of an image that has become qcow2, by its own tables. Each cluster is in use once. */
bool made_same_qcow2(const struct made *m, const uint8_t *bytes, uint64_t len, const struct made_guest *before, uint64_t *ret_at);

struct qed_header made_header(const uint8_t *bytes, uint64_t len);
/* Entry of a guest cluster; 0 where a pointer leads nowhere. */
uint64_t made_entry(const uint8_t *bytes, uint64_t len, uint64_t cluster);
static inline void made_put(uint8_t *bytes, uint64_t off, uint64_t v) { le64_put((le64 *)(bytes + off), v); }
static inline uint64_t made_get(const uint8_t *bytes, uint64_t off) { return le64_get((const le64 *)(bytes + off)); }

#endif
