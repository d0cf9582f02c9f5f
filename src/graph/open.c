/* SPDX-License-Identifier: MIT
 *
 * open.c: opens an image and its chain of backing images.
 *
 * Purpose     One layer after the other, in a loop: name, store, identity, format, locks, image, next name.
 * Owns        The layers opened so far, until the whole chain stands.
 * Invariants  I1  A file is in a chain once: found by identity before anything of it is read (RG22).
 *             I2  At most max_depth layers are open, plus the file that is one too many.
 *             I3  Backing layers are read-only. One that is open read-only already is shared, not opened twice.
 *             I4  Under strict policy nothing is guessed and an overlay names plain paths only.
 *             I5  Locks: see locks_of; taken before the format reads its metadata.
 *             I6  Nodes over one bare file share its store, and the lock of that is what all of them want: none of them that comes, goes or
 *                 changes takes away what another one needs. Who shares the store, and whether it becomes another one (mode.c), is settled
 *                 with the file's `whole` held; what the lock is to be, with its `locking`. Nobody holds `whole` of a node and asks it for
 *                 anything: who changes its structure closes its gate first and waits for `whole` then.
 * Order       None: opening for reading writes nothing; a format opened for writing sees to itself.
 * Concurrency Home loop. Suspends; a chain that is not complete is not shared (ready).
 * Failure     Everything opened by the call is closed again, the top last opened first closed.
 * Tests       open_test.c
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "graph/active.h"
#include "graph/pr.h"
#include "graph/under.h"
#include "stor/nbd.h"

static int file_open(struct co *co, void *arg, const char *name, const struct stor_file_opts *o, struct stor **ret_s, struct byre_err *err)
{
    if (o->null && stor_null_new(co, &(struct stor_null_opts){ .len = STOR_NULL_LEN }, ret_s))
        return byre_fail(err, NOMEM, "no memory for a store");
    return o->null ? 0 : o->nbd ? stor_nbd_open(co, o->nbd, o, ret_s, err) : stor_file_open(co, name, o, ret_s, err);
}

static bool file_identity(void *arg, const struct stor *s, uint64_t *ret_a, uint64_t *ret_b)
{
    return stor_file_identity(s, ret_a, ret_b) || stor_nbd_identity(s, ret_a, ret_b);
}

static int file_keep_name(struct co *co, void *arg, const char *name)
{
    return stor_names_no_file(name) ? 0 : stor_file_keep_name(co, name);
}

const struct graph_opener graph_file_opener = { .open = file_open, .identity = file_identity, .keep_name = file_keep_name };

/* A chain in the making. */
struct opening {
    struct graph *g;
    const struct graph_open_opts *o;
    struct graph_node *top, *last;      /* linked by `backing`, each holding one reference of the next */
    unsigned layers;
    struct name_crypt crypt[NAME_CRYPT_MAX];      /* said by names further up: of the next layer, of the one below it, ... owned */
};

/* One layer in the making. */
struct layer {
    struct name_ref *ref;
    const char *format;                 /* NULL: to be guessed */
    bool is_top, any_key;               /* any_key: the secret was given by the caller, not by a name */
    struct graph_node *n;
    struct stor *store;                 /* until the image takes it */
    struct stor *data;                  /* the same of an external data file, or a header, that is a node */
    struct graph_node *file;            /* `whole` of the bare file below it is held; with a reference. NULL: there is none */
    const struct fmt_ops *ops;
};

/* ---- locks ---- */

/* The peer's choices, as seen with lslocks: who writes holds write, formats with metadata hold resize too and deny
 * others both; a raw image denies nothing by itself, and a data file resizing only; who copies the disk denies others both in every
 * file of the chain; forced sharing denies nothing at all. */
void locks_of(struct graph_node *n, unsigned deny)
{
    if (n->inactive) {                           /* active.c A1 */
        n->lock_perm = 0;
        n->lock_shared = STOR_PERM_ALL;
        return;
    }
    n->lock_perm = STOR_PERM_READ;
    if (!n->read_only)
        n->lock_perm |= n->is_raw ? STOR_PERM_WRITE : STOR_PERM_WRITE | STOR_PERM_RESIZE;
    if (!n->is_raw || n->stable)
        deny = STOR_PERM_WRITE | STOR_PERM_RESIZE;
    n->lock_shared = n->force_share ? STOR_PERM_ALL : STOR_PERM_ALL & ~deny;
}

void data_locks_of(struct graph_node *n)
{
    if (n->inactive) {
        n->data_perm = 0;
        n->data_shared = STOR_PERM_ALL;
        return;
    }
    n->data_perm = data_perm_of(n, n->read_only);
    const unsigned deny = n->has_header || n->stable ? STOR_PERM_WRITE | STOR_PERM_RESIZE : STOR_PERM_RESIZE;        /* data.c I4 */
    n->data_shared = n->force_share ? STOR_PERM_ALL : STOR_PERM_ALL & ~deny;
}

/* Whose locks s takes, the store that n has or will have: the bare file's that it shares; else its own, or what it asks of a node below (under.c U4). */
static struct graph_node *store_owner(struct graph_node *n, const struct stor *s) { return n->file && !under_is_store(s) ? n->file : n; }

/* Of a bare file that images lie over, their wishes count, and its own where somebody else uses it as well. */
static bool speaks_through_images(const struct graph_node *n)
{
    unsigned images = 0, users = 0;
    for (const struct graph_user *u = n->users; u; u = u->next)
        users++;
    for (struct graph_node *m = node_next(n->g, NULL); m; m = node_next(n->g, m))
        images += m->file == n && (m->lock_perm || m->inactive);
    return images && users <= images;
}

/* I6. s: the store that n, one of them, has or will have. */
static void join_locks(const struct graph_node *owner, const struct graph_node *n, const struct stor *s, unsigned *perm, unsigned *unshared)
{
    for (struct graph_node *m = node_next(owner->g, NULL); m; m = node_next(owner->g, m)) {
        if (store_owner(m, m == n ? s : m->im ? m->im->store : NULL) != owner || m->no_lock || !(m->lock_perm || m->keep.holds))
            continue;
        *perm |= m->keep.perm;
        *unshared |= m->keep.unshared;
        unders_want(m, perm, unshared);
        if (m == owner && speaks_through_images(m))
            continue;
        *perm |= m->lock_perm;
        *unshared |= STOR_PERM_ALL & ~m->lock_shared;
    }
}

/* Of the store s, or, where s is NULL, of the one that n's image has when it is its turn. That is not closed meanwhile, whatever n becomes. */
static int lock_joined(struct co *co, struct graph_node *n, struct stor *s, struct stor *old, unsigned extra, struct byre_err *err)
{
    struct graph_node *owner = store_owner(n, s ? s : n->im->store);
    unsigned perm = extra, unshared = 0;
    co_lock(co, &owner->locking);
    if (!s && store_owner(n, n->im->store) != owner) {       /* it has become another one */
        co_unlock(&owner->locking);
        return lock_joined(co, n, s, old, extra, err);
    }
    struct stor *held = stor_share(s ? s : n->im->store);
    join_locks(owner, n, held, &perm, &unshared);
    int r = old ? stor_lock_beside(co, held, old, perm, STOR_PERM_ALL & ~unshared, err) : stor_lock(co, held, perm, STOR_PERM_ALL & ~unshared, err);
    co_unlock(&owner->locking);
    stor_close(co, held);
    return r;
}

int store_lock(struct co *co, struct graph_node *n, struct stor *s, struct stor *old, struct byre_err *err)
{
    return n->no_lock ? 0 : lock_joined(co, n, s, old, 0, err);
}

int data_lock(struct co *co, struct graph_node *n, struct stor *data, unsigned extra, struct byre_err *err)
{
    unsigned perm = n->data_perm | n->keep.data_perm | extra, shared = n->data_shared & ~n->keep.data_unshared;
    struct stor *old = n->im && n->im->second != data ? n->im->second : NULL;
    if (n->no_lock && !under_is_store(data))     /* said of the image's own files; a node's file has its own word (under.c U4) */
        return 0;
    return old ? stor_lock_beside(co, data, old, perm, shared, err) : stor_lock(co, data, perm, shared, err);
}

int node_lock(struct co *co, struct graph_node *n, unsigned extra, struct byre_err *err)
{
    int r = n->no_lock ? 0 : lock_joined(co, n, NULL, NULL, extra, err);
    return r || !n->im || !n->im->second ? r : data_lock(co, n, n->im->second, extra, err);
}

/* ---- format ---- */

static int guess_format(struct co *co, struct opening *op, struct layer *l, struct byre_err *err)
{
    uint8_t head[PROBE_BYTES] = { 0 };           /* a store that keeps nothing leaves it as it is */
    struct iovec slot;
    const char *name = l->n->filename;
    int r = stor_read(co, l->store, iov_one(&slot, head, sizeof head), 0);
    if (r)
        return byre_fail_code(err, IO, r, "%s: cannot read the first sector", name);
    l->ops = fmt_probe(head, sizeof head);
    l->n->probed = true;
    if (l->ops != &fmt_raw_ops)
        return 0;
    const char *other = fmt_signature(head, sizeof head);
    if (other)
        return byre_fail(err, NOT_SUPPORTED, "%s: looks like a %s image, which is not supported (state the format to override)", name, other);
    if (l->is_top && op->o->refuse_probed_raw && !l->n->read_only)
        return byre_fail(err, PROBED_RAW, "%s: the format was guessed as raw; state it to open the image for writing", name);
    return 0;
}

static int choose_format(struct co *co, struct opening *op, struct layer *l, struct byre_err *err)
{
    bool strict = op->g->policy == GRAPH_STRICT;
    if (l->ref->as_file) {
        l->ops = &fmt_raw_ops;
        return 0;
    }
    if (!l->format)
        return strict ? byre_fail(err, BAD_ARGUMENT, "%s: the format must be stated", l->n->filename) : guess_format(co, op, l, err);
    l->ops = fmt_by_name(l->format);
    bool bare_file = !l->ops && !l->is_top && !strict && (!strcmp(l->format, "file") || !strcmp(l->format, "host_device"));
    if (bare_file)
        l->ops = &fmt_raw_ops;
    return l->ops ? 0 : byre_fail(err, UNKNOWN_FORMAT, "%s: the format '%s' is not known", l->n->filename, l->format);
}

/* ---- one layer ---- */

static bool wants(enum name_tri said, bool asked)
{
    return said == NAME_UNSET ? asked : said == NAME_YES;
}

/* ---- over another node ---- */

static int check_file_node(const struct layer *l, struct graph_node *file, struct byre_err *err)
{
    const char *name = l->ref->file_ref;
    if (!file)
        return byre_fail(err, NOT_FOUND, "there is no node '%s' that could be 'file'", name);
    int r = active_allows(file, l->n->inactive, l->n->name, err);
    if (r || l->n->read_only)
        return r;
    const struct graph_node *bottom = graph_skip_filters(file);
    if (file->read_only && !(graph_skip_filters(file) && graph_skip_filters(file)->auto_read_only && !l->file))
        return byre_fail(err, READ_ONLY, "node '%s' is read-only, and the image over it is to be written", name);
    return bottom ? watches_allow(bottom, "grow under an image", err) : 0;       /* node_set_length */
}

/* Must what is written to this node be seen there, by bitmaps or watchers? (A threshold sees the store.) */
static bool is_seen(struct graph_node *file) { return file->im->bitmaps || atomic_load(&file->watches); }

/* The image has the store, or there will be none. */
static void leave_file_node(struct co *co, struct layer *l)
{
    struct graph_node *file = l->file;
    if (!file)
        return;
    l->file = NULL;
    graph_release_image(file);
    graph_writer_gone(co, file);                       /* it was to be written, and what was to write to it could not be opened */
    (void)node_unref(co, file);                  /* the image holds it, or its user has gone meanwhile: then there is nobody to tell */
}

/* A bare file's store is the image's. Any other node is asked, and shows what is nobody's file. */
static int take_store(struct co *co, struct layer *l, struct byre_err *err)
{
    struct graph_node *n = l->n, *file = n->file;
    n->no_lock |= file->is_file && file->no_lock;
    if (!file->is_file || is_seen(file))
        return under_new(co, file, n->name, n->read_only, &l->store, err);
    l->store = stor_share(file->im->store);
    n->has_identity = file->has_identity;
    n->id_a = file->id_a;
    n->id_b = file->id_b;
    return 0;
}

static int use_file_node(const struct layer *l, struct graph_node *file, struct byre_err *err)
{
    struct graph_node *n = l->n;
    bool raw = l->format && !strcmp(l->format, "raw");
    n->file_use = (struct graph_user){ .who = n->name, .perm = STOR_PERM_READ | (n->read_only ? 0 : STOR_PERM_WRITE | STOR_PERM_RESIZE),
                                       .shared = raw ? STOR_PERM_ALL : STOR_PERM_READ | STOR_PERM_WRITE_UNCHANGED, .idle = n->inactive };
    int r = graph_user_add(file, &n->file_use, err);
    char *name = r ? NULL : strdup(file->filename);
    if (!r && !name)
        r = byre_fail(err, NOMEM, "no memory for a file name");
    if (r) {
        graph_user_remove(&n->file_use);
        return r;
    }
    free(n->filename);
    n->filename = name;
    n->file = file;
    file->refs++;
    return 0;
}

/* The image lies over the file's node, and says so to others who use that. */
static int share_store(struct co *co, struct opening *op, struct layer *l, struct byre_err *err)
{
    struct graph_node *n = l->n, *file = graph_find(op->g, l->ref->file_ref);
    int r = check_file_node(l, file, err);
    if (r)
        return r;
    struct graph_node *awaited = n->read_only ? NULL : graph_await_writer(file);
    graph_ref(file);
    if (!n->file && !n->read_only)
        r = graph_writer_comes(co, file, err);
    graph_hold_image(co, file);                  /* I6 */
    l->file = file;
    if (!r)
        r = check_file_node(l, file, err);       /* it may be open in another way by now */
    if (!r && !n->file)
        r = use_file_node(l, file, err);
    graph_await_end(co, awaited);
    if (r)
        return r;
    r = take_store(co, l, err);
    if (!r && under_is_store(l->store))
        leave_file_node(co, l);                  /* it is asked from now on, and does not answer while somebody closes it to change it (drain.c) */
    return r;
}

static int open_store(struct co *co, struct opening *op, struct layer *l, struct byre_err *err)
{
    const struct graph_open_opts *o = op->o;
    struct graph_node *n = l->n;
    if (l->ref->file_ref)
        return share_store(co, op, l, err);
    struct stor_file_opts so = {
        .read_only = n->read_only,
        .direct = wants(l->ref->direct, o->direct),
        .no_flush = wants(l->ref->no_flush, o->no_flush),
        .discard = n->discard,
        .locking = n->no_lock ? STOR_LOCK_OFF : STOR_LOCK_AUTO,
        .nbd = name_nbd(l->ref),
        .null = l->ref->null,
        .tls = op->g->tls,
        .passed = op->g->passed,
        .prs = op->g->prs,
        .pr_manager = l->ref->node.pr_manager,
        .warn = op->g->warn,
        .warn_arg = op->g->warn_arg,
    };
    if (l->ref->node.native_aio && !so.direct)
        return byre_fail(err, BAD_OPTION, "%s: aio=native needs direct I/O (cache.direct=on)", n->filename);
    int r = so.pr_manager ? pr_check(op->g, so.pr_manager, err) : 0;
    if (!r)
        r = op->g->opener.open(co, op->g->opener.arg, n->filename, &so, &l->store, err);
    if (r)
        return r;
    n->has_identity = op->g->opener.identity && op->g->opener.identity(op->g->opener.arg, l->store, &n->id_a, &n->id_b);
    return 0;
}

/* A data file that is a node comes first: while the file's image is held (I6) no other one is waited for. */
static int open_files(struct co *co, struct opening *op, struct layer *l, struct byre_err *err)
{
    const char *data = l->ref->data_ref;
    l->n->has_header = l->ref->has_header;
    int r = data ? data_from_node(co, l->n, data, &l->data, err) : 0;
    return r ? r : open_store(co, op, l, err);
}

static bool same_file(const struct graph_node *a, const struct graph_node *b)
{
    return a->has_identity && b->has_identity && a->id_a == b->id_a && a->id_b == b->id_b;
}

static bool chain_has_file(const struct graph_node *top, const struct graph_node *n)
{
    for (; top; top = top->backing)
        if (top != n && (same_file(top, n) || data_is(top, n->has_identity, n->id_a, n->id_b)))
            return true;
    return false;
}

bool graph_has_file(const struct graph_node *n, uint64_t a, uint64_t b)
{
    for (; n; n = n->backing)
        if ((n->has_identity && n->id_a == a && n->id_b == b) || data_is(n, true, a, b))
            return true;
    return false;
}

static int loop_error(const struct graph_node *n, struct byre_err *err)
{
    return byre_fail(err, BACKING_LOOP, "%s: is in its own backing chain", n->filename);
}

/* "key-secret" belongs to luks, "encrypt.key-secret" to qcow2; other formats have no encryption. */
static int check_crypt(const struct opening *op, const struct layer *l, struct byre_err *err)
{
    const struct name_crypt *c = &op->crypt[0];
    bool luks = l->ops == &fmt_luks_ops, none = l->ops == &fmt_raw_ops || l->ops == &fmt_qed_ops;
    if (l->n->has_header && !luks)
        return byre_fail(err, BAD_OPTION, "%s: 'header' is an option of luks images, and this one is %s", l->n->filename, l->ops->name);
    if (l->n->key_secret && c->nested == luks && !l->any_key)
        return byre_fail(err, BAD_OPTION, "%s: a %s image takes '%s'", l->n->filename, l->ops->name, luks ? "key-secret" : "encrypt.key-secret");
    if ((l->n->key_secret && none) || (c->format && (luks || none)))
        return byre_fail(err, BAD_OPTION, "%s: a %s image takes no options of encryption", l->n->filename, l->ops->name);
    return 0;
}

static void warn_weak(struct graph *g, const struct graph_node *n)
{
    char text[400];
    if (!g->warn || !n->im->weak_cipher)
        return;
    snprintf(text, sizeof text, "%s: is encrypted in an old way that is easy to break; convert it to an image with LUKS encryption", n->filename);
    g->warn(g->warn_arg, text);
}

/* A part of the file instead of all of it (FEATURES 3.026). Where the format was guessed, its first sector must stay what it is. */
static int open_window(const struct layer *l, struct fmt_open_opts *fo, struct byre_err *err)
{
    struct graph_node *n = l->n;
    fo->window = l->ref->node.window;
    if (!fo->window.on)
        return 0;
    if (!n->is_raw)
        return byre_fail(err, BAD_OPTION, "%s: 'offset' and 'size' are options of raw images, and this one is %s", n->filename, l->ops->name);
    if (n->guard_first && fo->window.off && fo->window.off < SECTOR)
        return byre_fail(err, PROBED_RAW, "%s: the format was guessed as raw; state it to write behind an offset of %" PRIu64, n->filename, fo->window.off);
    n->is_view = true;
    return 0;
}

/* fmt_open_opts.corrupted of every image. */
static void tell_corruption(void *arg, const struct fmt_corruption *c)
{
    const struct graph_node *n = arg;
    graph_warn(n, c->fatal ? "%s: the image is corrupt and cannot be used any more: %s" : "%s: the image is damaged: %s; further damage is not told of",
               n->filename, c->text);
    if (n->g->corrupted)
        n->g->corrupted(n->g->corrupted_arg, n, c);
}

/* fmt_open_opts.leaked of every image. */
static void tell_leak(void *arg, uint64_t bytes)
{
    const struct graph_node *n = arg;
    graph_warn(n, "%s: %" PRIu64 " bytes that nothing uses could not be given back, because memory or storage failed; check -r leaks frees them", n->filename, bytes);
}

/* fmt_open_opts.outdated of every image. */
static void tell_outdated(void *arg, uint32_t bitmaps)
{
    const struct graph_node *n = arg;
    graph_warn(n, "%s: was written by a program that does not know of bitmaps: the %" PRIu32 " in it say nothing any more, and are left out", n->filename, bitmaps);
}

static int open_image(struct co *co, struct opening *op, struct layer *l, struct byre_err *err)
{
    struct graph_node *n = l->n;
    struct fmt_open_opts fo = { .cache_bytes = op->o->fmt.cache_bytes, .cache_clean_ms = op->o->fmt.cache_clean_ms, .info_only = op->o->fmt.info_only, .no_data = op->o->fmt.no_data };
    if (l->is_top)
        fo = op->o->fmt;
    struct data_ask ask = { .n = n, .top = op->top, .o = op->o, .of_node = &l->data, .path = l->ref->data_path ? l->ref->data_path : l->is_top ? op->o->data_file : NULL,
                            .direct = wants(l->ref->direct, op->o->direct), .no_flush = wants(l->ref->no_flush, op->o->no_flush) };
    struct fmt_host host = { .open_data = data_open, .arg = &ask, .has_header = n->has_header };
    fo.below = !l->is_top;
    fo.host = &host;
    fo.corrupted = tell_corruption;
    fo.corrupted_arg = n;
    fo.leaked = tell_leak;
    fo.outdated = tell_outdated;
    if (l->is_top && n->discard)             /* pass-discard-request follows discard=unmap */
        fo.discard_no_punch = false;
    name_runtime_apply(&l->ref->run, &fo);
    fo.read_only = n->read_only;
    fo.secrets = op->g->secrets;
    fo.key_secret = n->key_secret;
    fo.encrypt_format = op->crypt[0].format;
    n->is_raw = l->ops == &fmt_raw_ops;
    n->is_file = l->ref->as_file;
    n->is_view = fmt_snapshot_picks(&fo.snapshot);
    if (n->is_view && !l->ops->snapshot)
        return byre_fail(err, NOT_SUPPORTED, "%s: %s images have no internal snapshots", n->filename, l->ops->name);
    if (n->is_view && !n->read_only)
        return byre_fail(err, BAD_ARGUMENT, "%s: an internal snapshot can be opened for reading only", n->filename);
    n->guard_first = n->is_raw && n->probed && !n->read_only;
    int r = open_window(l, &fo, err);
    if (r)
        return r;
    locks_of(n, l->is_top ? op->o->deny : 0);
    r = store_lock(co, n, l->store, n->im && n->im->store != l->store ? n->im->store : NULL, err);      /* n->im: another one takes its place */
    if (!r)
        (void)under_seen(co, l->store, &n->seen);            /* of a store that cannot tell nothing is known */
    n->data_seen = (struct stor_seen){ 0 };
    if (!r)
        r = check_crypt(op, l, err);
    if (!r)
        r = l->ops->open(co, l->store, &fo, &n->im, err);
    if (!r)
        l->store = NULL;
    if (!r && (ask.path || l->data) && !n->data_filename && !fo.info_only)
        r = byre_fail(err, BAD_OPTION, "%s: 'data-file' is given, but this image has no external data file", n->filename);
    if (!r)
        warn_weak(op->g, n);
    if (!r && !fo.check_mode && !fo.info_only && !n->read_only)
        r = bitmaps_attach(co, n, err);
    return r;
}

static int node_options(struct opening *op, struct layer *l, struct byre_err *err)
{
    const struct graph_open_opts *o = op->o;
    struct graph_node *n = l->n;
    n->read_only = !l->is_top || o->read_only || l->ref->read_only == NAME_YES;
    n->force_share = wants(l->ref->force_share, o->force_share);
    n->stable = o->stable;
    n->no_lock = o->no_lock || l->ref->locking == NAME_NO || l->ref->null;
    n->no_backing = (l->is_top && o->no_backing) || l->ref->no_backing;
    n->discard = l->is_top && wants(l->ref->discard, o->discard);
    n->writethrough = l->is_top && o->writethrough;
    n->detect = !l->is_top ? GRAPH_DETECT_OFF : l->ref->node.detect ? l->ref->node.detect : o->detect;
    atomic_store(&n->recurse, RECURSE_UNKNOWN);
    if (o->inactive)
        active_open_asleep(n);
    if (n->detect == GRAPH_DETECT_UNMAP && !n->discard && !(n->inactive && n->awake.discard))
        return byre_fail(err, BAD_OPTION, "%s: detect-zeroes=unmap needs discard=unmap", n->filename);
    return node_name_files(n, l->ref->node.file_name, l->ref->node.data_name, err);
}

/* Who shares a node must know the same secret. */
static bool same_key(const struct graph_node *a, const struct graph_node *b)
{
    return !a->key_secret == !b->key_secret && (!a->key_secret || !strcmp(a->key_secret, b->key_secret));
}

/* Its reservations, too, are asked for where they are said to be. */
static bool same_pr_manager(const struct graph_node *n, const struct layer *l)
{
    const char *a = n->how ? n->how->ref.node.pr_manager : NULL, *b = l->ref->node.pr_manager;
    return a && b ? !strcmp(a, b) : a == b;
}

/* A complete read-only chain that begins with the same file in the same format. */
static struct graph_node *find_shared(struct opening *op, const struct layer *l)
{
    LIST_FOR(at, &op->g->nodes) {
        struct graph_node *n = CONTAINER_OF(at, struct graph_node, link);
        bool fits = n != l->n && !l->ref->data_path && !l->ref->data_ref && (!n->inactive || l->n->inactive) && n->ready && !n->ending && n->read_only && !n->is_view && !n->no_backing && n->im->ops == l->ops;
        fits &= n->stable || !l->n->stable;      /* what others may do to it was settled when it was opened */
        if (fits && n->force_share == l->n->force_share && same_file(n, l->n) && same_key(n, l->n) && same_pr_manager(n, l) && node_is_as_recorded(n))
            return n;
    }
    return NULL;
}

/* Gives up the layer's own node in favour of one that is open. */
static int share(struct co *co, struct opening *op, struct layer *l, struct graph_node *shared, struct byre_err *err)
{
    for (struct graph_node *n = op->top; n; n = n->backing)
        if (chain_has_file(shared, n))
            return loop_error(n, err);
    shared->refs++;
    stor_close(co, l->store);
    l->store = NULL;
    node_free(l->n);
    l->n = shared;
    return 0;
}

static int open_layer_parts(struct co *co, struct opening *op, struct layer *l, struct byre_err *err)
{
    int r = open_files(co, op, l, err);
    if (r)
        return r;
    if (chain_has_file(op->top, l->n))
        return loop_error(l->n, err);
    r = choose_format(co, op, l, err);
    if (r)
        return r;
    struct graph_node *shared = l->is_top && !op->o->share ? NULL : find_shared(op, l);
    return shared ? share(co, op, l, shared, err) : open_image(co, op, l, err);
}

static int layer_node(struct opening *op, struct layer *l, struct byre_err *err)
{
    char made[GRAPH_NAME_MAX + 16];
    const char *name = l->is_top ? (op->o->node_name ? op->o->node_name : l->ref->node_name) : NULL;
    if (!l->is_top && op->o->backing_names) {
        snprintf(made, sizeof made, "%s%u", op->o->backing_names, op->layers);
        name = made;
    }
    int r = node_new(op->g, name, &l->n, err);
    if (r)
        return r;
    l->n->filename = strdup(l->ref->path);
    if (!l->n->filename)
        return byre_fail(err, NOMEM, "no memory for a file name");
    r = node_options(op, l, err);
    if (r)
        return r;
    l->any_key = l->is_top && op->o->key_secret;
    const char *key = l->any_key ? op->o->key_secret : op->crypt[0].key_secret;
    l->n->key_secret = key ? strdup(key) : NULL;
    return l->n->key_secret || !key ? 0 : byre_fail(err, NOMEM, "no memory for a file name");
}

void node_how_free(struct node_how *how)
{
    if (!how)
        return;
    name_ref_fini(&how->ref);
    free(how->encrypt_format);
    free(how);
}

/* Keeps what opened the layer, its name included. */
static int keep_how(struct opening *op, struct layer *l, struct byre_err *err)
{
    const char *format = op->crypt[0].format;
    struct node_how *how = calloc(1, sizeof *how);
    if (!how || (format && !(how->encrypt_format = strdup(format)))) {
        free(how);
        return byre_fail(err, NOMEM, "no memory for a file name");
    }
    how->direct = wants(l->ref->direct, op->o->direct);
    how->no_flush = wants(l->ref->no_flush, op->o->no_flush);
    how->cache_bytes = op->o->fmt.cache_bytes;
    how->ref = *l->ref;
    *l->ref = (struct name_ref){ 0 };
    l->n->how = how;
    return 0;
}

int node_open_again(struct co *co, struct graph_node *n, const struct fmt_ops *ops, struct byre_err *err)
{
    struct node_how *how = n->how;
    const struct graph_open_opts o = { .direct = how->direct, .no_flush = how->no_flush, .fmt.cache_bytes = how->cache_bytes, .deny = REOPEN_DENY };
    struct opening op = { .g = n->g, .o = &o, .top = n, .crypt[0] = { .format = how->encrypt_format } };
    struct layer l = { .ref = &how->ref, .is_top = true, .any_key = true, .n = n, .ops = ops };
    const bool known = n->has_identity;
    const uint64_t a = n->id_a, b = n->id_b;
    int r = open_files(co, &op, &l, err);
    if (!r && known && !(n->has_identity && n->id_a == a && n->id_b == b))
        r = byre_fail_code(err, IO, -ESTALE, "%s: is another file than the one that is open", n->filename);
    n->has_identity = known;
    n->id_a = a;
    n->id_b = b;
    if (!r)
        r = open_image(co, &op, &l, err);
    stor_close(co, l.store);                     /* the image has taken it, or it could not be opened */
    stor_close(co, l.data);
    leave_file_node(co, &l);
    return r;
}

static void crypt_free(struct name_crypt *c)
{
    free(c->key_secret);
    free(c->format);
    *c = (struct name_crypt){ 0 };
}

/* What the layer's name says of encryption joins what names further up have said, which holds. */
static void crypt_join(struct opening *op, struct name_ref *ref)
{
    for (unsigned i = 0; i < NAME_CRYPT_MAX; i++)
        if (!op->crypt[i].key_secret && !op->crypt[i].format) {
            op->crypt[i] = ref->crypt[i];
            ref->crypt[i] = (struct name_crypt){ 0 };
        }
}

/* On to the next layer. */
static void crypt_next(struct opening *op)
{
    crypt_free(&op->crypt[0]);
    memmove(&op->crypt[0], &op->crypt[1], (NAME_CRYPT_MAX - 1) * sizeof op->crypt[0]);
    op->crypt[NAME_CRYPT_MAX - 1] = (struct name_crypt){ 0 };
}

/* Opens the layer and hangs it under the last one. */
static int open_layer(struct co *co, struct opening *op, struct layer *l, struct byre_err *err)
{
    crypt_join(op, l->ref);
    if (op->layers >= op->g->max_depth)
        return byre_fail(err, BACKING_DEPTH, "%s: the backing chain has more than %u images", op->top->filename, op->g->max_depth);
    int r = layer_node(op, l, err);
    if (!r)
        r = open_layer_parts(co, op, l, err);
    if (!r && !l->n->how)                        /* else it is shared */
        r = keep_how(op, l, err);
    stor_close(co, l->data);
    l->data = NULL;
    if (r) {
        stor_close(co, l->store);
        leave_file_node(co, l);
        if (l->n)
            (void)node_unref(co, l->n);
        return r;
    }
    leave_file_node(co, l);
    if (op->last) {
        op->last->backing = l->n;
        op->last->below_serial = l->n->serial;
    } else {
        op->top = l->n;
    }
    op->last = l->n;
    op->layers++;
    crypt_next(op);
    return 0;
}

/* ---- from one layer to the next ---- */

static void warn_no_format(struct graph *g, const char *overlay, const char *backing)
{
    char text[400];
    if (!g->warn)
        return;
    snprintf(text, sizeof text, "%s: the format of the backing file '%s' is not recorded; guessing it", overlay, backing);
    g->warn(g->warn_arg, text);
}

/* The reference to the next layer, from what the image has recorded. ret_format: owned, NULL = guess. */
static int next_reference(struct opening *op, struct graph_node *n, const struct fmt_info *info, struct name_ref *ref, char **ret_format, struct byre_err *err)
{
    struct graph *g = op->g;
    int r = name_parse(g->policy, info->backing_name, n->filename, ref, err);
    if (!r && (ref->file_ref || ref->data_ref))
        r = byre_fail(err, REFUSED_REFERENCE, "%s: its backing file name '%s' names a node of this process", n->filename, info->backing_name);
    if (!r && !n->no_backing && name_is_passed(ref))
        r = byre_fail(err, REFUSED_REFERENCE, "%s: its backing file name '%s' leads to what a client has passed, which a name that an image records must not; open it with such a 'backing' instead", n->filename, info->backing_name);
    if (r && !n->no_backing)
        return r;
    n->backing_filename = strdup(r ? info->backing_name : ref->path);
    if (!n->backing_filename)
        return byre_fail(err, NOMEM, "no memory for a file name");
    if (n->no_backing)
        return 0;
    const char *format = info->backing_format ? info->backing_format : ref->format;
    if (info->backing_format && ref->format && strcmp(info->backing_format, ref->format))
        return byre_fail(err, BACKING_FORMAT, "%s: two formats are recorded for its backing file, %s and %s", n->filename, info->backing_format, ref->format);
    if (!format && !ref->as_file && g->policy == GRAPH_STRICT)
        return byre_fail(err, BACKING_FORMAT, "%s: the format of its backing file '%s' is not recorded", n->filename, info->backing_name);
    if (!format && !ref->as_file)
        warn_no_format(g, n->filename, info->backing_name);
    *ret_format = format ? strdup(format) : NULL;
    return format && !*ret_format ? byre_fail(err, NOMEM, "no memory for a format name") : 0;
}

/* 1: ref names the next layer; 0: the chain ends here. */
static int backing_of(struct co *co, struct opening *op, struct graph_node *n, struct name_ref *ref, char **ret_format, struct byre_err *err)
{
    if (!n->im->has_backing)
        return 0;
    struct fmt_info info = { 0 };
    int r = n->im->ops->info(co, n->im, &info, err);
    if (r)
        return r;
    bool named = info.backing_name && info.backing_name[0];
    if (named)
        r = next_reference(op, n, &info, ref, ret_format, err);
    fmt_info_fini(&info);
    bool follow = !r && named && !n->no_backing;
    if (!follow)
        name_ref_fini(ref);
    return r ? r : follow;
}

/* What went wrong with a backing file, told from the overlay's side. */
static int backing_error(const struct graph_node *overlay, const char *name, const struct byre_err *why, struct byre_err *err)
{
    static const enum byre_reason kept[] = { BYRE_R_BACKING_LOOP, BYRE_R_BACKING_DEPTH, BYRE_R_BACKING_FORMAT, BYRE_R_LOCKED,
                                             BYRE_R_REFUSED_REFERENCE, BYRE_R_NOMEM };
    for (size_t i = 0; i < sizeof kept / sizeof kept[0]; i++)
        if (!strcmp(why->reason, byre_reason_name(kept[i])))
            return byre_fail_(err, kept[i], why->code, "%s: backing file '%s': %s", overlay->filename, name, why->text);
    return byre_fail_code(err, BACKING_OPEN, why->code, "%s: cannot open its backing file '%s': %s", overlay->filename, name, why->text);
}

static int open_backing(struct co *co, struct opening *op, struct name_ref *ref, const char *format, struct byre_err *err)
{
    struct byre_err why = { 0 };
    struct layer l = { .ref = ref, .format = format };
    const struct graph_node *overlay = op->last;
    int r = open_layer(co, op, &l, &why);
    return r ? backing_error(overlay, ref->path, &why, err) : 0;
}

/* A layer that makes sense only below a certain image: is n that one? By its token, which no other image has; in marks of old, and where a
 * header had no room, by the file's own name: folders may be moved. */
static bool is_through(const struct graph_node *n, const struct fmt_image *part)
{
    const char *through = part->partial;
    if (part->partial_token)
        return n->im->token && !strcmp(n->im->token, part->partial_token);
    const char *slash = strrchr(through, '/'), *own = strrchr(n->filename, '/');
    return !strcmp(own ? own + 1 : n->filename, slash ? slash + 1 : through);
}

/* With `backing` below top: does such an image lie above `part`, in this chain or above all of it? */
static bool has_through(const struct graph_node *top, const struct graph_node *backing, const struct graph_node *part)
{
    for (const struct graph_node *m = backing; m != part; m = m->backing)
        if (is_through(m, part->im))
            return true;
    for (struct graph_node *m = node_next(top->g, NULL); m; m = node_next(top->g, m))
        if (m->im && chain_has(m, top) && is_through(m, part->im))
            return true;
    return false;
}

int check_parts(const struct graph_node *top, const struct graph_node *backing, struct byre_err *err)
{
    for (const struct graph_node *n = backing; n; n = n->backing)
        if (n->im->partial && !has_through(top, backing, n))
            return byre_fail(err, NOT_SUPPORTED, "%s: %s '%s', in which a commit has replaced what lies below, so that it makes sense only below '%s'",
                             top->filename, top->backing == backing ? "lies above" : "would lie above", n->filename, n->im->partial);
    return 0;
}

/* Hangs the backing layers under the top, one by one, until one has none or its own are open already. */
static int open_chain(struct co *co, struct opening *op, struct byre_err *err)
{
    while (!op->last->ready) {
        struct name_ref ref = { 0 };
        char *format = NULL;
        int r = backing_of(co, op, op->last, &ref, &format, err);
        if (r > 0)
            r = open_backing(co, op, &ref, format, err);
        else if (!r)
            break;
        name_ref_fini(&ref);
        free(format);
        if (r)
            return r;
    }
    unsigned deeper = 0;
    for (const struct graph_node *n = op->last->backing; n; n = n->backing)
        deeper++;
    if (op->layers + deeper > op->g->max_depth)
        return byre_fail(err, BACKING_DEPTH, "%s: the backing chain has more than %u images", op->top->filename, op->g->max_depth);
    return 0;
}

/* ---- the whole ---- */

int node_use_backing(struct graph_node *n, struct byre_err *err)
{
    if (!n->backing || n->backing_use.node)
        return 0;
    n->backing_use = (struct graph_user){ .who = n->name, .perm = STOR_PERM_READ, .shared = STOR_PERM_READ | STOR_PERM_WRITE_UNCHANGED, .idle = n->inactive };
    return graph_user_add(n->backing, &n->backing_use, err);
}

void node_set_below(struct graph_node *n)
{
    if (n->ending)                               /* nobody asks it any more, and its image is being closed, or has been */
        return;
    uint64_t from = n->im->has_backing ? UINT64_MAX : 0;
    if (n->backing) {                            /* a filter that comes to lie here has no length of its own yet */
        const struct graph_node *image = graph_skip_filters(n->backing);
        from = image ? max_u64(graph_length(image), graph_length(n->backing)) : UINT64_MAX;
    }
    if (atomic_load(&n->alone))                  /* something else will come to lie there */
        from = UINT64_MAX;
    atomic_store(&n->im->below_zero_from, from);
}

/* Somebody changes what lies below, and may have dropped the indexes already: he makes them again at his end (R3). */
static bool is_changing(const struct graph_node *n)
{
    for (; n; n = n->backing)
        if (n->shuts)
            return true;
    return false;
}

static int finish(struct opening *op, struct byre_err *err)
{
    for (struct graph_node *n = op->top; n && !n->ready; n = n->backing) {
        int r = node_use_backing(n, err);
        if (r)
            return r;
        node_set_below(n);
    }
    for (struct graph_node *n = op->top; n && !n->ready; n = n->backing)
        n->ready = true;
    if (op->top->backing && !is_changing(op->top->backing))
        index_attach(op->top->backing);
    gates_update(op->g);
    return 0;
}

static int open_top(struct co *co, struct opening *op, struct name_ref *ref, struct byre_err *err)
{
    const struct graph_open_opts *o = op->o;
    if (ref->format && o->format && strcmp(ref->format, o->format))
        return byre_fail(err, BAD_OPTION, "%s: both format '%s' and driver '%s' are given", ref->path, o->format, ref->format);
    if (ref->as_file && o->format && strcmp(o->format, "raw"))
        return byre_fail(err, BAD_OPTION, "%s: the bare file is named, it cannot have the format '%s'", ref->path, o->format);
    if (ref->read_only == NAME_YES && !o->read_only)
        return byre_fail(err, READ_ONLY, "%s: is to be opened for writing, and 'read-only' is on", ref->path);
    struct layer l = { .ref = ref, .format = o->format ? o->format : ref->format, .is_top = true };
    int r = open_layer(co, op, &l, err);
    if (!r && op->top->im->partial && !o->fmt.check_mode && !o->fmt.info_only && !o->fmt.no_data)
        r = byre_fail(err, NOT_SUPPORTED, "%s: a commit has replaced what lies below it, so that it makes sense only as a layer below '%s'", op->top->filename, op->top->im->partial);
    return r;
}

int graph_open(struct co *co, struct graph *g, const struct graph_open_opts *o, struct graph_node **ret_n, struct byre_err *err)
{
    ASSERT_LOOP(g->home);
    struct opening op = { .g = g, .o = o };
    struct name_ref ref;
    if (o->force_share && !o->read_only)
        return byre_fail(err, BAD_OPTION, "%s: sharing can be forced for read-only images only", o->filename);
    int r = !o->node_refs && !o->overlay && g->policy != GRAPH_STRICT && name_may_nest(o->filename) ? graph_open_nested(co, g, o, ret_n, err) : 0;
    if (r)
        return r < 0 ? r : 0;
    r = name_parse(o->node_refs ? GRAPH_ECOSYSTEM : g->policy, o->filename, o->overlay, &ref, err);
    if (!r && (ref.active == NAME_NO || ref.file_inactive) && !o->inactive) {
        bool file = ref.active != NAME_NO;
        name_ref_fini(&ref);
        r = byre_fail(err, BAD_OPTION, file ? "json: an inactive file cannot be the 'file' of an active node" : "json: 'active' cannot be off here: nobody could turn it on");
        return r;
    }
    if (!r && (ref.file_ref || ref.data_ref) && !o->node_refs) {
        r = o->overlay ? byre_fail(err, REFUSED_REFERENCE, "%s: its backing file name '%s' names a node of this process", o->overlay, o->filename)
                       : byre_fail(err, NOT_SUPPORTED, "json: '%s' names a node; give it as an object", ref.file_ref ? "file" : ref.has_header ? "header" : "data-file");
        name_ref_fini(&ref);
    }
    if (r)
        return r;
    r = open_top(co, &op, &ref, err);
    name_ref_fini(&ref);
    if (!r)
        r = open_chain(co, &op, err);
    if (!r && !o->fmt.check_mode && !o->fmt.info_only && !o->fmt.no_data)
        r = check_parts(op.top, op.top->backing, err);
    if (!r)
        r = finish(&op, err);
    for (unsigned i = 0; i < NAME_CRYPT_MAX; i++)
        crypt_free(&op.crypt[i]);
    if (r) {
        if (op.top)
            (void)node_unref(co, op.top);
        return r;
    }
    *ret_n = op.top;
    return 0;
}

/* ---- the store alone ---- */

bool graph_name_is_remote(enum graph_policy policy, const char *name)
{
    return policy != GRAPH_STRICT && stor_names_no_file(name);
}

int graph_store_open(struct co *co, struct graph *g, const char *name, const struct stor_file_opts *o, struct stor **ret_s, struct byre_err *err)
{
    struct name_ref ref = { 0 };
    struct stor_file_opts so = *o;
    so.passed = g->passed;
    so.warn = g->warn;
    so.warn_arg = g->warn_arg;
    if (!graph_name_is_remote(g->policy, name))
        return g->opener.open(co, g->opener.arg, name, &so, ret_s, err);
    int r = name_parse(g->policy, name, NULL, &ref, err);
    if (r)
        return r;
    so.nbd = name_nbd(&ref);
    so.null = ref.null;
    so.tls = g->tls;
    if (ref.null && !so.read_only)
        r = byre_fail(err, NOT_SUPPORTED, "%s: no image is made there: nothing is kept", name);
    else
        r = g->opener.open(co, g->opener.arg, ref.path, &so, ret_s, err);
    name_ref_fini(&ref);
    return r;
}
