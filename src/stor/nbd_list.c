/* SPDX-License-Identifier: MIT
 *
 * nbd_list.c: what an NBD server offers.
 *
 * Purpose      Its exports by name, and of each what it tells: size, abilities, blocks, meta contexts. No export is entered.
 * Owns         The list until it is handed out.
 * Invariants   I1  A server may tell anything: the list has at most LIST_MAX exports and CONTEXTS_MAX contexts of each, and all of it
 *                  is told before one deadline.
 * Order        None.
 * Concurrency  The calling loop; suspends. Callbacks of libnbd run inside its calls, on this loop.
 * Failure      An export that is listed and not told of (it may ask for TLS) stays in the list, with the reason.
 * Tests        tests/interop/test_nbd_client.py
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "stor/nbd_priv.h"

enum { LIST_MAX = 16384, CONTEXTS_MAX = 1024 };

/* One question to the server, and what comes of it. */
struct asking {
    struct stor_nbd_list *list;
    struct stor_nbd_export *export;
    bool over, nomem;
    int error;
};

static void export_fini(struct stor_nbd_export *e)
{
    for (unsigned i = 0; i < e->context_count; i++)
        free(e->contexts[i]);
    free(e->contexts);
    free(e->name);
    free(e->description);
    free(e->why);
}

void stor_nbd_list_fini(struct stor_nbd_list *l)
{
    for (unsigned i = 0; i < l->count; i++)
        export_fini(&l->exports[i]);
    free(l->exports);
    *l = (struct stor_nbd_list){ 0 };
}

static int on_end(void *arg, int *error)
{
    struct asking *a = arg;
    a->over = true;
    a->error = *error;
    return 1;
}

static int on_export(void *arg, const char *name, const char *description)
{
    struct asking *a = arg;
    struct stor_nbd_list *l = a->list;
    struct stor_nbd_export *more = l->count < LIST_MAX ? reallocarray(l->exports, l->count + 1, sizeof *more) : NULL;
    a->nomem |= !more && l->count < LIST_MAX;
    if (!more)
        return 0;
    l->exports = more;
    struct stor_nbd_export *e = &more[l->count];
    *e = (struct stor_nbd_export){ .name = strdup(name), .description = description[0] ? strdup(description) : NULL };
    l->count++;
    a->nomem |= !e->name || (description[0] && !e->description);
    return 0;
}

static int on_context(void *arg, const char *name)
{
    struct asking *a = arg;
    struct stor_nbd_export *e = a->export;
    char **more = e->context_count < CONTEXTS_MAX ? reallocarray(e->contexts, e->context_count + 1, sizeof *more) : NULL;
    a->nomem |= !more && e->context_count < CONTEXTS_MAX;
    if (!more)
        return 0;
    e->contexts = more;
    more[e->context_count] = strdup(name);
    a->nomem |= !more[e->context_count];
    e->context_count += more[e->context_count] != NULL;
    return 0;
}

/* Until the question is answered. begun: what libnbd said to it. */
static int answer(struct co *co, struct nbd_handle *h, struct asking *a, int begun, struct byre_err *err)
{
    int r = begun < 0 ? -EIO : 0;
    while (!r && !a->over)
        r = nbdc_step(co, h);
    if (r == -ECANCELED || r == -ETIMEDOUT)
        return byre_fail_code(err, SYSTEM, r, "the NBD server does not answer");
    if (r)
        return byre_fail_code(err, PROTOCOL, r, "the NBD server does not answer: %s", nbdc_why());
    return a->nomem ? byre_fail(err, NOMEM, "no memory for a list of exports") : 0;
}

static int flag(int answered) { return answered > 0; }
static uint64_t positive(int64_t answered) { return answered > 0 ? (uint64_t)answered : 0; }

static void read_export(struct nbd_handle *h, struct stor_nbd_export *e)
{
    e->known = true;
    e->size = positive(nbd_lib.get_size(h));
    e->read_only = flag(nbd_lib.is_read_only(h));
    e->rotational = flag(nbd_lib.is_rotational(h));
    e->can_flush = flag(nbd_lib.can_flush(h));
    e->can_fua = flag(nbd_lib.can_fua(h));
    e->can_trim = flag(nbd_lib.can_trim(h));
    e->can_zero = flag(nbd_lib.can_zero(h));
    e->can_fast_zero = flag(nbd_lib.can_fast_zero(h));
    e->can_multi_conn = flag(nbd_lib.can_multi_conn(h));
    e->can_cache = flag(nbd_lib.can_cache(h));
    e->can_df = flag(nbd_lib.can_df(h));
    e->min_block = positive(nbd_lib.get_block_size(h, LIBNBD_SIZE_MINIMUM));
    e->opt_block = positive(nbd_lib.get_block_size(h, LIBNBD_SIZE_PREFERRED));
    e->max_block = positive(nbd_lib.get_block_size(h, LIBNBD_SIZE_MAXIMUM));
}

/* What follows would fail for a reason of its own, which says nothing about the server. */
static int still_there(struct nbd_handle *h, struct byre_err *err)
{
    return nbd_lib.aio_is_negotiating(h) > 0 ? 0 : byre_fail(err, PROTOCOL, "the NBD server has closed the connection before it told of all its exports");
}

static int ask_export(struct co *co, struct nbd_handle *h, struct stor_nbd_export *e, struct byre_err *err)
{
    struct asking info = { .export = e }, contexts = { .export = e };
    if (nbd_lib.set_export_name(h, e->name) < 0)
        return byre_fail(err, PROTOCOL, "the NBD server lists an export whose name is too long");
    int r = answer(co, h, &info, nbd_lib.aio_opt_info(h, (nbd_completion_callback){ .callback = on_end, .user_data = &info }), err);
    if (!r)
        r = still_there(h, err);
    if (r)
        return r;
    if (info.error) {
        e->why = strdup(strerrordesc_np(info.error) ? strerrordesc_np(info.error) : "refused");
        return e->why ? 0 : byre_fail(err, NOMEM, "no memory for a list of exports");
    }
    read_export(h, e);
    r = answer(co, h, &contexts, nbd_lib.aio_opt_list_meta_context(h, (nbd_context_callback){ .callback = on_context, .user_data = &contexts },
               (nbd_completion_callback){ .callback = on_end, .user_data = &contexts }), err);
    return r ? r : still_there(h, err);
}

static int ask(struct co *co, const struct stor_nbd_opts *o, struct nbd_handle *h, struct stor_nbd_list *l, struct byre_err *err)
{
    struct asking a = { .list = l };
    if (nbd_lib.set_opt_mode(h, true) < 0 || nbd_lib.set_full_info(h, true) < 0)
        return byre_fail(err, NOMEM, "NBD: %s", nbdc_why());
    int r = nbdc_connect(co, o, h, err);
    if (r)
        return r;
    while (!r && nbd_lib.aio_is_connecting(h) > 0)
        r = nbdc_step(co, h);
    if (r)
        return byre_fail_code(err, SYSTEM, r, "the NBD server refuses: %s", r == -ETIMEDOUT ? "no answer" : nbdc_why());
    if (nbd_lib.aio_is_negotiating(h) <= 0)
        return byre_fail(err, NOT_SUPPORTED, "the NBD server is too old to list its exports");
    l->structured = flag(nbd_lib.get_structured_replies_negotiated(h));
    r = answer(co, h, &a, nbd_lib.aio_opt_list(h, (nbd_list_callback){ .callback = on_export, .user_data = &a }, (nbd_completion_callback){ .callback = on_end, .user_data = &a }), err);
    if (!r)
        r = still_there(h, err);
    if (!r && a.error)
        r = byre_fail_code(err, SYSTEM, -a.error, "the NBD server does not list its exports: %s%s", strerrordesc_np(a.error), o->creds ? "" : "; it may want TLS");
    for (unsigned i = 0; !r && i < l->count; i++)
        r = ask_export(co, h, &l->exports[i], err);
    if (!r)
        (void)nbd_lib.aio_opt_abort(h);              /* a farewell */
    return r;
}

int stor_nbd_list(struct co *co, const struct stor_nbd_opts *o, struct stor_nbd_list *ret, struct byre_err *err)
{
    struct stor_nbd_list l = { 0 };
    int r = stor_nbd_check(o, err);
    if (!r)
        r = nbd_lib_load(co, err);
    struct nbd_handle *h = r ? NULL : nbd_lib.create();
    if (r)
        return r;
    if (!h)
        return byre_fail(err, NOMEM, "no memory for an NBD connection");
    uint64_t old = co_set_deadline(co, rt_now(co_loop(co)) + NBDC_HANDSHAKE_NS);
    r = ask(co, o, h, &l, err);
    (void)co_set_deadline(co, old);
    nbdc_close(co, h);
    if (r)
        stor_nbd_list_fini(&l);
    else
        *ret = l;
    return r;
}
