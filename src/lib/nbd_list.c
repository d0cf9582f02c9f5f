/* SPDX-License-Identifier: MIT
 *
 * nbd_list.c: what NBD servers offer.
 *
 * Purpose      Hands a name down and a list up.
 * Owns         struct byre_nbd_list
 * Invariants   none
 * Concurrency  any thread that may block; the asking is done on the home loop, which goes on meanwhile
 * Failure      as include/byre/nbd.h
 * Tests        tests/daemon/nbd_list_test.py
 */
#include "byre/nbd.h"
#include "lib/lib_inside.h"
#include "lib/lib_priv.h"
#include "stor/nbd.h"

struct byre_nbd_list { struct stor_nbd_list l; };
struct asking { struct stor_nbd_opts *o; struct tls_set *tls; struct stor_nbd_list *l; struct byre_err *err; };

static int ask_co(struct co *co, void *arg)
{
    struct asking *a = arg;
    int r = stor_nbd_take_creds(co, a->o, a->tls, a->err);
    return r ? r : stor_nbd_list(co, a->o, a->l, a->err);
}

int byre_nbd_list(struct byre_ctx *ctx, const char *uri, struct byre_nbd_list **ret_list, struct byre_err *err)
{
    struct stor_nbd_opts o = { 0 };
    int r = graph_name_nbd(uri, &o, err);
    struct byre_nbd_list *list = r ? NULL : calloc(1, sizeof *list);
    if (!r && !list)
        r = byre_fail(err, NOMEM, "no memory for a list of exports");
    if (!r)
        r = lib_ctx_call(ctx, ask_co, &(struct asking){ &o, ctx->tls, &list->l, err });
    stor_nbd_opts_fini(&o);
    if (r) {
        free(list);
        return r;
    }
    *ret_list = list;
    return 0;
}

unsigned byre_nbd_list_count(const struct byre_nbd_list *list) { return list->l.count; }

/* The bits of the protocol. */
static uint16_t flags_of(const struct stor_nbd_export *e)
{
    const struct { bool on; unsigned bit; } all[] = {
        { true, 0 }, { e->read_only, 1 }, { e->can_flush, 2 }, { e->can_fua, 3 }, { e->rotational, 4 }, { e->can_trim, 5 }, { e->can_zero, 6 },
        { e->can_df, 7 }, { e->can_multi_conn, 8 }, { e->can_cache, 10 }, { e->can_fast_zero, 11 },
    };
    unsigned flags = 0;
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        flags |= all[i].on ? 1u << all[i].bit : 0;
    return (uint16_t)flags;
}

struct byre_nbd_export byre_nbd_list_get(const struct byre_nbd_list *list, unsigned i)
{
    const struct stor_nbd_export *e = &list->l.exports[i];
    struct byre_nbd_export x = { .name = e->name, .description = e->description };
    if (!e->known) {
        x.unknown = e->why ? e->why : "the server does not say";
        return x;
    }
    x.size = e->size;
    x.flags = flags_of(e);
    x.min_block = e->min_block;
    x.preferred_block = e->opt_block;
    x.max_block = e->max_block;
    x.contexts = (const char *const *)e->contexts;
    x.context_count = e->context_count;
    return x;
}

void byre_nbd_list_free(struct byre_nbd_list *list)
{
    if (!list)
        return;
    stor_nbd_list_fini(&list->l);
    free(list);
}
