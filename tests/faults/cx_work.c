/* SPDX-License-Identifier: MIT
 *
 * cx_work.c: the first image of a scenario.
 *
 * Purpose      Makes it, or takes it from a file, and reads it into the model.
 * Owns         Nothing.
 * Invariants   None.
 * Order        None.
 * Concurrency  Coroutines of the world's one loop.
 * Failure      Said on stderr.
 * Tests        test_faults.py: it makes the image of every scenario, and reads it back.
 */
#include "cx_work.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "fx_luks.h"

struct prep { struct cx_world *w; struct cx_model *m; const struct cx_work *k; bool ok; };

/* The external data file of a fresh image. */
int cx_open_data(struct co *co, void *arg, const char *name, struct stor **ret_s, struct byre_err *err)
{
    (void)co;
    int e = cx_store_open(arg, name, false, ret_s);
    return e < 0 ? byre_fail(err, NOMEM, "%s", name) : 0;
}

static int make_fresh(struct co *co, struct cx_world *w, const struct cx_geometry *g, struct byre_err *err)
{
    struct stor *s;
    struct fmt_create_opts o = { .size = g->size, .cluster_size = g->cluster, .version = g->version, .refcount_bits = g->refcount_bits, .extended_l2 = g->sub,
        .table_size = g->table };
    char base[] = "base", raw[] = "raw";
    if (g->backing) {
        o.backing_file = base;
        o.backing_fmt = raw;
    }
    if (g->luks)
        fx_luks_options(&o);
    char data[] = "data";
    struct fmt_host host = { .open_data = cx_open_data, .arg = w };
    if (g->data_file) {
        o.data_file = data;
        o.host = &host;
    }
    cx_image_blank(w);
    memset(w->data.data, 0, w->data.len);
    w->data.len = 0;
    int r = cx_store_open(w, "img", false, &s);
    if (r < 0)
        return r;
    r = cx_format(g)->create(co, s, &o, err);
    stor_close(co, s);
    return r;
}

static bool load_file(struct cx_world *w, const char *path)
{
    FILE *f = fopen(path, "rb");
    if (!f)
        return false;
    memset(w->image.data, 0, CX_FILE_MAX);
    w->image.len = fread(w->image.data, 1, CX_FILE_MAX, f);
    fclose(f);
    return w->image.len > 0;
}

int cx_read_all(struct co *co, struct cx_world *w, uint8_t *out)
{
    struct iovec slot;
    return graph_read(co, w->node, iov_one(&slot, out, min_u64(graph_length(w->node), CX_SECTORS_MAX * CX_SECTOR)), 0);
}

static void prepare_co(struct co *co, void *arg)
{
    struct prep *p = arg;
    struct byre_err err = { .text = "" };
    uint8_t *guest = calloc(CX_SECTORS_MAX, CX_SECTOR);
    int r = p->k->g.image[0] ? (load_file(p->w, p->k->g.image) ? 0 : -ENOENT) : make_fresh(co, p->w, &p->k->g, &err);
    if (r == 0)
        r = cx_open(co, p->w, true, false, &err);
    if (r == 0) {
        r = cx_read_all(co, p->w, guest);
        if (r == 0)
            cx_model_start(p->m, guest, graph_length(p->w->node));
        int c = cx_close(co, p->w);
        r = r ? r : c;
    }
    free(guest);
    p->ok = r == 0;
    if (r)
        fprintf(stderr, "byre-crash: the first image of %s cannot be made: %d %s\n", p->k->g.name, r, err.text);
}

bool cx_work_prepare(struct cx_world *w, struct cx_model *m, const struct cx_work *k)
{
    const struct cx_geometry *g = &k->g;
    cx_world_seed(w, k->seed * 31 + 7);
    w->recording = w->jitter = false;
    w->frontier_bytes = g->frontier;
    w->device = g->device;
    w->qed = g->table;
    w->cache_bytes = 4096;
    w->keys = g->luks ? FX_KEY_A | FX_KEY_B : 0;
    w->backing.len = g->backing ? round_down(g->size * 3 / 4, CX_SECTOR) : 0;
    for (uint64_t i = 0; i < w->backing.len; i++)
        w->backing.data[i] = (uint8_t)((i >> 9) * 7 + 1);
    struct prep p = { w, m, k, false };
    return cx_run(w, prepare_co, &p) && p.ok;
}
