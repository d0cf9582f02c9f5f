/* SPDX-License-Identifier: MIT
 *
 * lk.h: LUKS1 as the formats use it: make, open, change key slots; and a store that encrypts what passes through it.
 * Concurrency: home loop of the image, but for the store, which any loop uses.
 */
#ifndef LK_H
#define LK_H

#include "fmt/fmt.h"
#include "fmt/luks/lk_header.h"
#include "stor/stor.h"

/* Where a header lies: in `store` from byte `base` on, `len` bytes with its key slots (0: up to the payload that it names).
 * flush makes what was written to it durable, in the way of the format. */
struct lk_area {
    struct stor *store;
    uint64_t base, len;
    int (*flush)(struct co *co, void *arg);
    void *arg;
    const char *name;                        /* for messages */
};

#define LK_ITER_TIME_MS 2000u               /* when nothing is said */

/* ---- lk_slots.c ---- */
/* Reads and checks the header. */
MUST_USE int lk_load(struct co *co, const struct lk_area *a, struct lk_header *ret, struct byre_err *err);
/* The key that `pass` opens, h->key_bytes in secret memory. -EACCES: it opens no slot. only: this slot, -1: any. Suspends for
 * as long as the key derivation takes. */
MUST_USE int lk_unlock(struct co *co, const struct lk_area *a, const struct lk_header *h, const struct secret *pass, int only,
                       uint8_t **ret_key, unsigned *ret_slot, struct byre_err *err);
/* One change of key slots (FEATURES 1.074). */
struct lk_change {
    enum fmt_key_state state;
    int keyslot;                             /* -1: not stated */
    struct secret *new_secret, *old_secret;  /* NULL: not stated */
    const struct secret *open_secret;        /* opens a key slot */
    uint64_t iter_time_ms; bool has_iter_time;
    bool force;                              /* an active slot may be overwritten, the last one erased */
};
/* h is brought up to date. */
MUST_USE int lk_amend(struct co *co, const struct lk_area *a, struct lk_header *h, const struct lk_change *o, struct byre_err *err);

/* What changes of slots are made of; -errno, which lk_failed tells. */
int lk_failed(const struct lk_area *a, const char *what, int r, struct byre_err *err);
/* The digest by which a key is recognised. */
MUST_USE int lk_digest(struct co *co, const struct lk_header *h, const uint8_t *key, uint8_t digest[LK_DIGEST_BYTES]);
/* What a slot is to hold. salt NULL: a new one. */
struct lk_filling { const uint8_t *key; const struct secret *pass; uint64_t iter_time_ms; const uint8_t *salt; };
/* Fills slot i of h, material on disk and durable; the slot is active in memory only. */
MUST_USE int lk_fill_slot(struct co *co, const struct lk_area *a, struct lk_header *h, unsigned i, const struct lk_filling *f);
/* The same, and the header on disk knows it. */
MUST_USE int lk_add_slot(struct co *co, const struct lk_area *a, struct lk_header *h, unsigned i, const struct lk_filling *f);
/* Erases slots while others stay that may have been written just before our time: these are durable first. */
MUST_USE int lk_erase_slots(struct co *co, const struct lk_area *a, struct lk_header *h, unsigned mask);
/* Sector i of the header, durable; old, new: the whole header. Nothing when they are the same. */
MUST_USE int lk_put_sector(struct co *co, const struct lk_area *a, const uint8_t *old, const uint8_t *new, unsigned i);

/* ---- lk_new.c ---- */
/* A new key for h, in memory alone: *ret_key, to be freed. */
MUST_USE int lk_new_key(struct co *co, const struct lk_area *a, struct lk_header *h, uint64_t iter_time_ms, uint8_t **ret_key, struct byre_err *err);
/* Writes its first slot, durable; then the header, not flushed. */
MUST_USE int lk_new_slot(struct co *co, const struct lk_area *a, struct lk_header *h, const struct lk_filling *f, struct byre_err *err);
MUST_USE int lk_put_header(struct co *co, const struct lk_area *a, const struct lk_header *h, struct byre_err *err);
/* The three of them: a header with a new key and one slot. Everything but the header is durable before the header is written; it is not flushed. */
MUST_USE int lk_format(struct co *co, const struct lk_area *a, struct lk_header *h, const struct secret *pass, uint64_t iter_time_ms, struct byre_err *err);
/* Writes h with its first slot over another header, a detached one, so that at each instant one of the two is valid: durable when it returns. The area
 * has a->len bytes. -EAGAIN, and nothing was written: there is no room for both at a time, or no header that we know. */
MUST_USE int lk_replace(struct co *co, const struct lk_area *a, struct lk_header *h, const struct lk_filling *f, struct byre_err *err);

/* ---- lk_spare.c ---- */
/* What the salt of an active slot says of another slot as that one is now. */
enum lk_mark {
    LK_MARK_FOR = 1,                         /* it stands in for it */
    LK_MARK_BEFORE,                          /* the same, and the other has not been overwritten yet */
    LK_MARK_AFTER,                           /* the same, and the other holds the new passphrase */
};
/* The salt of a spare for slot `of`, which has the salt `after` at the end. */
MUST_USE int lk_spare_salt(const struct lk_header *h, unsigned of, const uint8_t *after, uint8_t ret[LK_SALT_BYTES]);
/* Slots that say this of slot `of` (-1: of any): a mask. *ret_of: the last slot of which one does; unchanged when none does. */
unsigned lk_spares(const struct lk_header *h, int of, enum lk_mark what, unsigned *ret_of);

/* ---- lk_options.c ---- */
/* What the options of creation say, the layout included; prefix: "encrypt." or "". */
MUST_USE int lk_options(const struct fmt_encrypt *o, const char *prefix, struct lk_header *ret, struct byre_err *err);
/* The secret of that id, or a sentence. option: "encrypt.key-secret"; name: of the image, NULL: it is to be made. */
MUST_USE int lk_secret(struct secret_set *set, const char *id, const char *option, const char *name, struct secret **ret, struct byre_err *err);
/* The part of an amend that changes key slots, as an operation of its own; nothing when no option of it was stated. prefix:
 * "encrypt." or "". check_only: says whether the options make sense, changes nothing. */
struct lk_amending { const struct fmt_amend_opts *a; const char *prefix; const struct secret *open_secret; bool check_only; };
MUST_USE int lk_amend_options(struct co *co, const struct lk_area *area, struct lk_header *h, const struct lk_amending *m, struct byre_err *err);
/* For fmt_info: a copy on the heap. */
MUST_USE int lk_describe(const struct lk_header *h, struct fmt_crypt_info **ret);

/* ---- lk_reach.c ---- */
/* The LUKS header, if any, at the beginning of a disk that is opened by another one: version 0: there is none; end: behind its key slots
 * and all else in front of its payload, UINT64_MAX: who knows. Suspends. */
struct lk_reach { unsigned version; uint64_t end; };
MUST_USE int lk_reach(struct co *co, struct stor *s, struct lk_reach *ret);

/* ---- lk_store.c ---- */
/* A store that shows what lies in `below` from `base` on, decrypted. x NULL: the key is missing, every request fails with
 * -EACCES. Neither below nor x is owned: they outlive the store. sector 0 of the initial vectors is at byte iv_base of below. */
struct lk_store_opts { struct stor *below; const struct lk_xform *x; uint64_t base, iv_base; };
MUST_USE int lk_store_new(const struct lk_store_opts *o, struct stor **ret_s);

#endif
