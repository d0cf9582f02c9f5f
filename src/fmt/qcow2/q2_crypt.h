/* SPDX-License-Identifier: MIT
 *
 * q2_crypt.h: encryption of a qcow2 image (FEATURES 1f). Private to this folder.
 */
#ifndef Q2_CRYPT_H
#define Q2_CRYPT_H

#include "fmt/luks/lk.h"
#include "fmt/qcow2/q2_image.h"

/* Of an open encrypted image. */
struct q2_crypt {
    struct lk_header h;                     /* LUKS only */
    struct lk_xform *x;                     /* NULL: opened without its key */
    struct secret *pass;                    /* that opened it */
    bool legacy;                            /* AES of the first days: by guest offset, read-only */
};

/* Opens the encryption that the header names: im.data becomes a store that decrypts. Nothing is written. */
MUST_USE int q2_crypt_open(struct co *co, struct q2_image *q, struct byre_err *err);
void q2_crypt_close(struct co *co, struct q2_image *q);
/* A cluster of legacy AES: it goes by guest offset, which a store does not know. */
MUST_USE int q2_crypt_read_legacy(struct co *co, struct q2_image *q, const struct fmt_extent *e, uint64_t off, struct iov v);
/* For info; NULL when not encrypted. -ENOMEM. */
MUST_USE int q2_crypt_info(const struct q2_image *q, struct fmt_crypt_info **ret);
/* The part of amend that changes key slots; check_only: changes nothing. */
MUST_USE int q2_crypt_amend(struct co *co, struct q2_image *q, const struct fmt_amend_opts *a, bool check_only, struct byre_err *err);

/* ---- creation ---- */
/* The header that the options ask for, on the heap; NULL: no encryption. Refuses what cannot be made. */
MUST_USE int q2_crypt_plan(const struct fmt_create_opts *o, struct lk_header **ret, struct byre_err *err);
/* Writes it with a fresh key at byte `base` of a file that has room there. s NULL: only says whether the secret is there. */
MUST_USE int q2_crypt_write(struct co *co, struct stor *s, uint64_t base, struct lk_header *h, const struct fmt_create_opts *o, struct byre_err *err);

#endif
