/* SPDX-License-Identifier: MIT
 *
 * lk_slots.c: keys in key slots.
 *
 * Purpose      From a passphrase to the key of the data, and the other way: making headers, adding and erasing slots.
 * Owns         Key material while a call runs, all of it in memory of secret_new.
 * Invariants   S1  A slot becomes active on disk only when its key material is durable.
 *              S2  A slot is inactive on disk, without its salt, before its key material is overwritten: an active slot
 *                  always opens, so "another slot is active" is a promise that the data can be reached.
 *              S3  An active slot is overwritten while a second copy of the key, under the new passphrase, stands in another slot
 *                  (if there is room for one): whoever changes the slot may know no passphrase of those that are active beside it.
 *              S4  Such a spare slot says of itself what it is, by its salt, to us: a crash may leave it. Then it is erased when the slot
 *                  that it stood in for holds the new passphrase, or is changed again; or, when no other slot is free, whichever of the two
 *                  the passphrase does not open that somebody has just shown to know. A slot that anybody has written since says nothing.
 * Order        Q26: material, flush, header. The header is two sectors: the one with the state of the slot goes last when a slot
 *              becomes active and first when it ends.
 * Concurrency  Home loop of the image. Long arithmetic is on the CPU pool.
 * Failure      A passphrase that fits no slot: -EACCES. Whatever fails, slots that were active before stay so, but for the one
 *              that was to be changed.
 * Tests        luks_test.c (every write torn), tests/interop/test_luks.py, crash explorer (geometries *-luks, mutants KEY_*)
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/mutant.h"
#include "fmt/luks/lk.h"
#include "rt/loop.h"

/* ---- the header on disk ---- */

int lk_failed(const struct lk_area *a, const char *what, int r, struct byre_err *err)
{
    if (r == -ENOMEM)
        return byre_fail(err, NOMEM, "%s: no memory for keys", a->name);
    if (r == -ECANCELED)
        return byre_fail(err, CANCELLED, "%s: the key derivation was cancelled", a->name);
    return byre_fail_code(err, IO, r, "%s: cannot %s", a->name, what);
}

int lk_load(struct co *co, const struct lk_area *a, struct lk_header *ret, struct byre_err *err)
{
    uint8_t buf[sizeof(struct lk_disk_header)];
    struct iovec slot;
    int r = stor_read(co, a->store, iov_one(&slot, buf, sizeof buf), a->base);
    return r < 0 ? lk_failed(a, "read the LUKS header", r, err) : lk_header_parse(buf, sizeof buf, a->len, a->name, ret, err);
}

int lk_put_sector(struct co *co, const struct lk_area *a, const uint8_t *old, const uint8_t *new, unsigned i)
{
    if (!memcmp(old + i * LK_SECTOR, new + i * LK_SECTOR, LK_SECTOR))
        return 0;
    int r = stor_write_buf(co, a->store, new + i * LK_SECTOR, LK_SECTOR, a->base + i * LK_SECTOR, 0);
    return r < 0 ? r : a->flush(co, a->arg);
}

/* Brings slot i of h to the disk: S1, S2. */
static int put_slot(struct co *co, const struct lk_area *a, const struct lk_header *h, unsigned i)
{
    uint8_t *old = malloc(2 * LK_HEAD_BYTES);
    if (!old)
        return -ENOMEM;
    uint8_t *new = old + LK_HEAD_BYTES;
    struct iovec slot;
    unsigned state = (unsigned)((offsetof(struct lk_disk_header, slot) + i * sizeof(struct lk_disk_slot)) / LK_SECTOR);
    int r = stor_read(co, a->store, iov_one(&slot, old, LK_HEAD_BYTES), a->base);
    memcpy(new, old, LK_HEAD_BYTES);
    lk_header_emit(h, new);
    unsigned first = h->slot[i].active && !MUTANT(MUT_KEY_STATE_FIRST) ? 1 - state : state;
    if (r >= 0)
        r = lk_put_sector(co, a, old, new, first);
    if (r >= 0)
        r = lk_put_sector(co, a, old, new, 1 - first);
    free(old);
    return r;
}

/* ---- between a passphrase and the key ---- */

struct split {
    const struct lk_header *h;
    uint32_t stripes;
    uint8_t *material;
    uint64_t bytes;
    uint8_t *key;
    struct lk_xform *x;
    bool join;
};

static int64_t run_split(void *arg)
{
    struct split *s = arg;
    if (s->join) {
        lk_decrypt(s->x, s->material, s->bytes, 0);
        lk_af_merge(s->h->hash, s->material, s->h->key_bytes, s->stripes, s->key);
        return 0;
    }
    int r = lk_af_split(s->h->hash, s->key, s->h->key_bytes, s->stripes, s->material);
    if (r == 0)
        lk_encrypt(s->x, s->material, s->bytes, 0);
    return r;
}

/* The key that encrypts the material of slot i. */
static int slot_xform(struct co *co, const struct lk_header *h, unsigned i, const struct secret *pass, struct lk_xform **ret_x)
{
    const struct lk_slot *s = &h->slot[i];
    struct lk_pbkdf2 p = { h->hash, pass->bytes, pass->len, s->salt, sizeof s->salt, s->iterations };
    uint8_t *key = secret_new(h->key_bytes);
    int r = key ? lk_pbkdf2_run(co, &p, key, h->key_bytes) : -ENOMEM;
    if (r == 0)
        r = lk_xform_new(&h->suite, key, ret_x);
    secret_free(key);
    return r;
}

int lk_digest(struct co *co, const struct lk_header *h, const uint8_t *key, uint8_t digest[LK_DIGEST_BYTES])
{
    struct lk_pbkdf2 p = { h->hash, key, h->key_bytes, h->digest_salt, sizeof h->digest_salt, h->digest_iterations };
    return lk_pbkdf2_run(co, &p, digest, LK_DIGEST_BYTES);
}

/* Does `pass` open slot i? 0: key holds it; -EACCES: no. */
static int try_slot(struct co *co, const struct lk_area *a, const struct lk_header *h, unsigned i, const struct secret *pass, uint8_t *key)
{
    const struct lk_slot *s = &h->slot[i];
    struct split w = { .h = h, .stripes = s->stripes, .bytes = lk_material_bytes(h->key_bytes, s->stripes), .key = key, .join = true };
    uint8_t digest[LK_DIGEST_BYTES];
    w.material = secret_new(w.bytes);
    int r = w.material ? stor_read_exact(co, a->store, w.material, w.bytes, a->base + s->off) : -ENOMEM;
    if (r == -EACCES)                        /* of the file: that is no answer about the passphrase */
        r = -EIO;
    if (r == 0)
        r = slot_xform(co, h, i, pass, &w.x);
    if (r == 0)
        r = (int)rt_cpu(co, run_split, &w);
    if (r == 0)
        r = lk_digest(co, h, key, digest);
    if (r == 0 && secret_differs(digest, h->digest, sizeof digest))
        r = -EACCES;
    lk_xform_free(w.x);
    secret_free(w.material);
    return r;
}

int lk_unlock(struct co *co, const struct lk_area *a, const struct lk_header *h, const struct secret *pass, int only,
              uint8_t **ret_key, unsigned *ret_slot, struct byre_err *err)
{
    uint8_t *key = secret_new(h->key_bytes);
    int r = key ? -EACCES : -ENOMEM, unreadable = 0;
    for (unsigned i = 0; i < LK_SLOTS && (r == -EACCES); i++) {
        if (!h->slot[i].active || (only >= 0 && (unsigned)only != i))
            continue;
        r = try_slot(co, a, h, i, pass, key);
        if (r == 0)
            *ret_slot = i;
        if (r == -EIO) {                     /* another slot may do */
            unreadable = r;
            r = -EACCES;
        }
    }
    if (r == 0) {
        *ret_key = key;
        return 0;
    }
    secret_free(key);
    if (r == -EACCES && unreadable)
        return lk_failed(a, "read all key slots", unreadable, err);
    return r == -EACCES ? byre_fail(err, WRONG_SECRET, "%s: the passphrase opens no key slot", a->name) : lk_failed(a, "unlock the key", r, err);
}

/* ---- writing slots ---- */

int lk_fill_slot(struct co *co, const struct lk_area *a, struct lk_header *h, unsigned i, const struct lk_filling *f)
{
    struct lk_slot *s = &h->slot[i];
    struct lk_slot fresh = { .usable = true, .stripes = s->stripes, .off = s->off };
    int r = 0;
    if (f->salt)
        memcpy(fresh.salt, f->salt, sizeof fresh.salt);
    else
        r = secret_random(fresh.salt, sizeof fresh.salt);
    if (r == 0)
        r = lk_pbkdf2_calibrate(co, h->hash, h->key_bytes, f->iter_time_ms, &fresh.iterations);
    if (r < 0)
        return r;
    *s = fresh;
    struct split w = { .h = h, .stripes = s->stripes, .bytes = lk_material_bytes(h->key_bytes, s->stripes), .key = (uint8_t *)(uintptr_t)f->key };
    w.material = secret_new(w.bytes);
    r = w.material ? slot_xform(co, h, i, f->pass, &w.x) : -ENOMEM;
    if (r == 0)
        r = (int)rt_cpu(co, run_split, &w);
    if (r == 0)
        r = stor_write_buf(co, a->store, w.material, w.bytes, a->base + s->off, 0);
    if (r == 0 && !MUTANT(MUT_KEY_SLOT_EARLY))
        r = a->flush(co, a->arg);            /* S1 */
    s->active = r == 0;
    lk_xform_free(w.x);
    secret_free(w.material);
    return r;
}

static int erase_slot(struct co *co, const struct lk_area *a, struct lk_header *h, unsigned i)
{
    struct lk_slot *s = &h->slot[i];
    uint64_t bytes = lk_material_bytes(h->key_bytes, s->stripes);
    s->active = false;
    s->iterations = 0;
    memset(s->salt, 0, sizeof s->salt);
    bool late = MUTANT(MUT_KEY_ERASE_FIRST);
    int r = late ? 0 : put_slot(co, a, h, i);        /* S2 */
    uint8_t *junk = r == 0 ? malloc(bytes) : NULL;
    if (r == 0)
        r = junk ? secret_random(junk, bytes) : -ENOMEM;
    if (r == 0)
        r = stor_write_buf(co, a->store, junk, bytes, a->base + s->off, 0);
    if (r == 0)
        r = a->flush(co, a->arg);
    if (r == 0 && late)
        r = put_slot(co, a, h, i);
    free(junk);
    return r;
}

int lk_add_slot(struct co *co, const struct lk_area *a, struct lk_header *h, unsigned i, const struct lk_filling *f)
{
    int r = lk_fill_slot(co, a, h, i, f);
    return r < 0 ? r : put_slot(co, a, h, i);
}

/* ---- spare slots ---- */

int lk_erase_slots(struct co *co, const struct lk_area *a, struct lk_header *h, unsigned mask)
{
    int r = mask ? a->flush(co, a->arg) : 0;
    for (unsigned i = 0; i < LK_SLOTS && r == 0; i++)
        if (mask & 1u << i)
            r = erase_slot(co, a, h, i);
    return r;
}

/* Spares whose slot holds the new passphrase: nothing is lost with them. */
static int settle_spares(struct co *co, const struct lk_area *a, struct lk_header *h, struct byre_err *err)
{
    unsigned of;
    int r = lk_erase_slots(co, a, h, lk_spares(h, -1, LK_MARK_AFTER, &of));
    return r < 0 ? lk_failed(a, "erase a key slot that an interrupted change has left", r, err) : 0;
}

/* ---- changing slots ---- */

static int free_slot(const struct lk_header *h, int but)
{
    for (int i = 0; i < (int)LK_SLOTS; i++)
        if (i != but && !h->slot[i].active && h->slot[i].usable)
            return i;
    return -1;
}

/* The slot that a new key goes to, or a refusal. *ret_slot -1: none is free, but an interrupted change has left a spare. */
static int choose_slot(const struct lk_area *a, const struct lk_header *h, const struct lk_change *o, int *ret_slot, struct byre_err *err)
{
    unsigned of;
    int i = *ret_slot = o->keyslot >= 0 ? o->keyslot : free_slot(h, -1);
    if (i < 0)
        return lk_spares(h, -1, LK_MARK_BEFORE, &of) ? 0 : byre_fail(err, LIMIT, "%s: all key slots are in use", a->name);
    if (!h->slot[i].usable)
        return byre_fail(err, BAD_ARGUMENT, "%s: key slot %d has no place that a key could be written to", a->name, i);
    if (!h->slot[i].active || o->force)
        return 0;
    return lk_active_slots(h) == 1
           ? byre_fail(err, EXISTS, "%s: key slot %d is the only active one and is not overwritten without force", a->name, i)
           : byre_fail(err, EXISTS, "%s: key slot %d is active and is not overwritten; erase it first, or use force", a->name, i);
}

/* All slots are in use, two of them because a change was interrupted: one is given up, not the one that opens (S4). */
static int give_up_slot(struct co *co, const struct lk_area *a, struct lk_header *h, unsigned opens)
{
    unsigned of, mask = lk_spares(h, -1, LK_MARK_BEFORE, &of), k = 0;
    mask = mask ? lk_spares(h, (int)of, LK_MARK_BEFORE, &of) : 0;
    if (!mask)
        return -ENOENT;
    while (!(mask & 1u << k))
        k++;
    unsigned i = k == opens ? of : k;
    int r = lk_erase_slots(co, a, h, 1u << i);
    return r < 0 ? r : (int)i;
}

/* Which of these slots are opened by the passphrase? Those are left in *mask. */
static int keep_opened(struct co *co, const struct lk_area *a, const struct lk_header *h, const struct secret *pass, unsigned *mask)
{
    uint8_t *key = secret_new(h->key_bytes);
    int r = key ? 0 : -ENOMEM;
    for (unsigned i = 0; i < LK_SLOTS && r == 0; i++) {
        if (!(*mask & 1u << i))
            continue;
        r = try_slot(co, a, h, i, pass, key);
        if (r == -EACCES) {
            *mask &= ~(1u << i);
            r = 0;
        }
    }
    secret_free(key);
    return r;
}

/* Spares that go when slot i has been written: of a change of it that came no further. What somebody has put into the slot since does not
 * concern them, but for the passphrase that one of them opens with: it is wanted in one place. */
static int left_spares(struct co *co, const struct lk_area *a, const struct lk_header *h, unsigned i, const struct secret *pass, unsigned *ret)
{
    unsigned of, same = lk_spares(h, (int)i, LK_MARK_FOR, &of);
    int r = same ? keep_opened(co, a, h, pass, &same) : 0;
    *ret = same | lk_spares(h, (int)i, LK_MARK_BEFORE, &of);
    return r;
}

/* Slot i is active. opens: one that the passphrase opens which is known. */
static int write_over(struct co *co, const struct lk_area *a, struct lk_header *h, unsigned i, unsigned opens, struct lk_filling *f, unsigned left)
{
    uint8_t marked[LK_SALT_BYTES], after[LK_SALT_BYTES];
    int spare = !MUTANT(MUT_KEY_NO_SPARE) ? free_slot(h, (int)i) : -1, r = 0;
    for (unsigned k = 0; k < LK_SLOTS && spare < 0; k++)
        if (left & 1u << k && k != opens)            /* room for a new spare; slot i is what it was */
            spare = (int)k;
    if (spare >= 0 && h->slot[spare].active)
        r = lk_erase_slots(co, a, h, 1u << spare);
    if (r == 0)
        r = secret_random(after, sizeof after);
    if (r == 0)
        r = lk_spare_salt(h, i, after, marked);
    f->salt = marked;
    if (r == 0 && spare >= 0)
        r = lk_add_slot(co, a, h, (unsigned)spare, f);  /* S3 */
    if (r == 0 && spare >= 0)
        r = lk_erase_slots(co, a, h, left & ~(1u << spare));        /* now: when slot i has another salt, nobody knows them */
    if (r == 0)
        r = erase_slot(co, a, h, i);
    f->salt = after;
    if (r == 0)
        r = lk_add_slot(co, a, h, i, f);
    return r < 0 || spare < 0 ? r : lk_erase_slots(co, a, h, 1u << spare);
}

static int write_key(struct co *co, const struct lk_area *a, struct lk_header *h, unsigned i, unsigned opens, struct lk_filling *f)
{
    unsigned left;
    int r = left_spares(co, a, h, i, f->pass, &left);
    if (r == 0)
        r = h->slot[i].active ? write_over(co, a, h, i, opens, f, left) : lk_add_slot(co, a, h, i, f);
    for (unsigned k = 0; k < LK_SLOTS; k++)
        left &= h->slot[k].active ? ~0u : ~(1u << k);
    return r < 0 ? r : lk_erase_slots(co, a, h, left);
}

static int activate(struct co *co, const struct lk_area *a, struct lk_header *h, const struct lk_change *o, struct byre_err *err)
{
    uint8_t *key;
    unsigned from;
    int i = -1;
    if (!o->new_secret)
        return byre_fail(err, BAD_OPTION, "%s: a key slot becomes active with new-secret only", a->name);
    if (o->old_secret)
        return byre_fail(err, BAD_OPTION, "%s: old-secret has no meaning when a key slot becomes active", a->name);
    int r = settle_spares(co, a, h, err);
    if (r == 0)
        r = choose_slot(a, h, o, &i, err);
    if (r == 0)
        r = lk_unlock(co, a, h, o->open_secret, -1, &key, &from, err);
    if (r < 0)
        return r;
    struct lk_filling f = { key, o->new_secret, o->has_iter_time ? o->iter_time_ms : LK_ITER_TIME_MS, NULL };
    if (i < 0)
        i = give_up_slot(co, a, h, from);
    r = i < 0 ? i : write_key(co, a, h, (unsigned)i, from, &f);
    secret_free(key);
    return r < 0 ? lk_failed(a, "write the key slot", r, err) : 0;
}

/* Which active slots does the old passphrase open? A mask in *ret. */
static int matching_slots(struct co *co, const struct lk_area *a, const struct lk_header *h, const struct secret *pass, unsigned *ret, struct byre_err *err)
{
    unsigned mask = 0;
    for (unsigned i = 0; i < LK_SLOTS; i++)
        mask |= h->slot[i].active ? 1u << i : 0;
    int r = keep_opened(co, a, h, pass, &mask);
    *ret = mask;
    return r < 0 ? lk_failed(a, "read the key slots", r, err) : 0;
}

/* Which slots are to be erased: a mask in *ret, or a refusal. */
static int choose_erased(struct co *co, const struct lk_area *a, const struct lk_header *h, const struct lk_change *o, unsigned *ret, struct byre_err *err)
{
    unsigned mask = o->keyslot >= 0 ? 1u << o->keyslot : 0, opened = 0;
    if (o->keyslot >= 0 && !h->slot[o->keyslot].active)
        return byre_fail(err, NOT_FOUND, "%s: key slot %d is inactive already", a->name, o->keyslot);
    int r = o->old_secret ? matching_slots(co, a, h, o->old_secret, &opened, err) : 0;
    if (r < 0)
        return r;
    if (o->old_secret && o->keyslot >= 0 && !(opened & mask))
        return byre_fail(err, WRONG_SECRET, "%s: the passphrase of old-secret does not open key slot %d", a->name, o->keyslot);
    if (o->old_secret && !opened)
        return byre_fail(err, WRONG_SECRET, "%s: the passphrase of old-secret opens no key slot", a->name);
    if (o->keyslot < 0)
        mask = opened;
    if ((unsigned)__builtin_popcount(mask) >= lk_active_slots(h) && !o->force)
        return byre_fail(err, PERMISSION, "%s: no key slot would be left and all data would be lost for ever; refused", a->name);
    *ret = mask;
    return 0;
}

static int deactivate(struct co *co, const struct lk_area *a, struct lk_header *h, const struct lk_change *o, struct byre_err *err)
{
    unsigned mask = 0;
    if (o->new_secret || o->has_iter_time)
        return byre_fail(err, BAD_OPTION, "%s: %s has no meaning when a key slot is erased", a->name, o->new_secret ? "new-secret" : "iter-time");
    if (!o->old_secret && o->keyslot < 0)
        return byre_fail(err, BAD_OPTION, "%s: which key slot is to be erased? keyslot or old-secret is needed", a->name);
    int r = settle_spares(co, a, h, err);
    if (r == 0)
        r = choose_erased(co, a, h, o, &mask, err);
    if (r < 0)
        return r;
    r = lk_erase_slots(co, a, h, mask);
    return r < 0 ? lk_failed(a, "erase the key slot", r, err) : 0;
}

int lk_amend(struct co *co, const struct lk_area *a, struct lk_header *h, const struct lk_change *o, struct byre_err *err)
{
    if (o->state == FMT_KEY_UNSET)
        return byre_fail(err, BAD_OPTION, "%s: state=active or state=inactive is needed to change key slots", a->name);
    if (o->keyslot >= (int)LK_SLOTS)
        return byre_fail(err, BAD_OPTION, "%s: key slot %d does not exist, they are numbered 0 to %u", a->name, o->keyslot, LK_SLOTS - 1);
    int r = lk_load(co, a, h, err);          /* a failure of before may have left something else in memory */
    if (r < 0)
        return r;
    r = o->state == FMT_KEY_ACTIVE ? activate(co, a, h, o, err) : deactivate(co, a, h, o, err);
    struct lk_header now;
    if (lk_load(co, a, &now, NULL) == 0)     /* what is true after a failure is what the disk says */
        *h = now;
    return r;
}
