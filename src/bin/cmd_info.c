/* SPDX-License-Identifier: MIT
 *
 * cmd_info.c: byre info (FEATURES 5.051, 5.052).
 *
 * Purpose      What an image, or each image of a chain, says about itself.
 * Owns         the list of images seen, for finding cycles
 * Invariants   I1 each image is opened alone, without its backing chain, and closed before the next
 * Concurrency  main thread
 * Failure      exit 1
 * Tests        tests/cli/info_test.py
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/json_out.h"
#include "base/size.h"
#include "bin/bin.h"
#include "bin/commands.h"
#include "bin/info_text.h"

#define CHAIN_MAX 65536

struct opts {
    struct common common;
    char *format, *output;
    bool image_opts, chain, force_share;
};

static const struct opt_row rows[] = {
    ROW_HELP,
    ROW_OBJECT,
    ROW_IMAGE_OPTS(struct opts),
    ROW_FORMAT(struct opts),
    ROW_OUTPUT(struct opts),
    { "backing-chain", 0, OPT_BOOL, OPT_AT(struct opts, chain), .help = "the backing images too" },
    ROW_FORCE_SHARE(struct opts),
    OPT_END
};

/* ---- JSON ---- */
void info_json_snapshots(struct json_out *j, const char *key, const struct byre_info *i)
{
    jo_open_arr(j, key);
    for (size_t k = 0; k < i->snapshot_count; k++) {
        const struct byre_snapshot_info *s = i->snapshots[k];
        jo_open_obj(j, NULL);
        if (s->has_icount)
            jo_u64(j, "icount", s->icount);
        jo_u64(j, "vm-clock-nsec", s->vm_clock_ns % 1000000000u);
        jo_str(j, "name", s->name);
        jo_u64(j, "date-sec", s->date_sec);
        jo_u64(j, "date-nsec", s->date_nsec);
        jo_u64(j, "vm-clock-sec", s->vm_clock_ns / 1000000000u);
        jo_str(j, "id", s->id);
        jo_u64(j, "vm-state-size", s->vm_state_size);
        jo_close(j);
    }
    jo_close(j);
}

static void json_bitmaps(struct json_out *j, const struct byre_info *i)
{
    jo_open_arr(j, "bitmaps");
    for (size_t k = 0; k < i->bitmap_count; k++) {
        const struct byre_bitmap_info *b = i->bitmaps[k];
        jo_open_obj(j, NULL);
        jo_open_arr(j, "flags");
        if (b->in_use)
            jo_str(j, NULL, "in-use");
        if (b->auto_on)
            jo_str(j, NULL, "auto");
        jo_close(j);
        jo_str(j, "name", b->name);
        jo_u64(j, "granularity", b->granularity);
        jo_close(j);
    }
    jo_close(j);
}

static void json_slots(struct json_out *j, const struct byre_crypt_info *c)
{
    jo_open_arr(j, "slots");
    for (size_t k = 0; k < sizeof c->slots / sizeof c->slots[0]; k++) {
        const struct byre_key_slot *s = &c->slots[k];
        jo_open_obj(j, NULL);
        jo_bool(j, "active", s->active);
        if (s->active)
            jo_u64(j, "iters", s->iters);
        jo_u64(j, "key-offset", s->key_offset);
        if (s->active)
            jo_u64(j, "stripes", s->stripes);
        jo_close(j);
    }
    jo_close(j);
}

/* The members of an encrypt object; nested: the format is named. */
static void json_crypt(struct json_out *j, const struct byre_crypt_info *c, bool nested)
{
    if (strcmp(c->format, "luks") == 0) {
        if (c->ivgen_alg)
            jo_str(j, "ivgen-alg", c->ivgen_alg);
        if (c->detached)
            jo_bool(j, "detached-header", true); /* of others the peer says it in some of its versions only */
        jo_str(j, "hash-alg", c->hash_alg);
        jo_str(j, "cipher-alg", c->cipher_alg);
        jo_str(j, "uuid", c->uuid);
    }
    if (c->ivgen_hash_alg)
        jo_str(j, "ivgen-hash-alg", c->ivgen_hash_alg);
    if (nested)
        jo_str(j, "format", c->format);
    if (strcmp(c->format, "luks") != 0)
        return;
    jo_str(j, "cipher-mode", c->cipher_mode);
    json_slots(j, c);
    jo_u64(j, "payload-offset", c->payload_offset);
    jo_u64(j, "master-key-iters", c->master_key_iters);
}

static void json_luks(struct json_out *j, const struct byre_info *i)
{
    jo_open_obj(j, "format-specific");
    jo_str(j, "type", "luks");
    jo_open_obj(j, "data");
    json_crypt(j, i->crypt, false);
    jo_close(j);
    jo_close(j);
}

static void json_qcow2(struct json_out *j, const struct byre_info *i)
{
    jo_open_obj(j, "format-specific");
    jo_str(j, "type", "qcow2");
    jo_open_obj(j, "data");
    jo_str(j, "compat", i->version == 2 ? "0.10" : "1.1");
    if (i->has_data_file && i->data_file)
        jo_str(j, "data-file", i->data_file);
    jo_str(j, "compression-type", i->compression);
    if (i->version >= 3) {
        jo_bool(j, "lazy-refcounts", i->lazy_refcounts);
        if (i->bitmap_count)
            json_bitmaps(j, i);
        if (i->has_data_file)
            jo_bool(j, "data-file-raw", i->data_file_raw);
        if (i->generation) {
            jo_u64(j, "x-generation", i->generation);
            jo_bool(j, "x-written-by-others", i->others_wrote);
        }
        if (i->bitmaps_outdated)
            jo_u64(j, "x-bitmaps-outdated", i->bitmaps_outdated);
    }
    jo_u64(j, "refcount-bits", i->refcount_bits);
    if (i->crypt) {
        jo_open_obj(j, "encrypt");
        json_crypt(j, i->crypt, true);
        jo_close(j);
    }
    if (i->version >= 3) {
        jo_bool(j, "corrupt", i->corrupt);
        jo_bool(j, "extended-l2", i->extended_l2);
    }
    jo_close(j);
    jo_close(j);
}

static void json_info(struct json_out *j, const struct byre_info *i)
{
    jo_open_obj(j, NULL);
    if (i->snapshot_count)
        info_json_snapshots(j, "snapshots", i);
    if (i->backing_format)
        jo_str(j, "backing-filename-format", i->backing_format);
    jo_u64(j, "virtual-size", i->virtual_size);
    jo_str(j, "filename", i->filename);
    if (i->cluster_size)
        jo_u64(j, "cluster-size", i->cluster_size);
    jo_str(j, "format", i->format);
    if (i->has_actual_size)
        jo_u64(j, "actual-size", i->actual_size);
    if (i->is_qcow2)
        json_qcow2(j, i);
    else if (i->crypt)
        json_luks(j, i);
    if (i->full_backing_filename)
        jo_str(j, "full-backing-filename", i->full_backing_filename);
    if (i->backing_filename)
        jo_str(j, "backing-filename", i->backing_filename);
    if (i->encrypted)
        jo_bool(j, "encrypted", true);
    jo_bool(j, "dirty-flag", i->dirty);
    jo_close(j);
}

/* ---- text ---- */
static const char *yes_no(int v)
{
    return v ? "true" : "false";
}

void info_print_snapshots(const struct byre_info *i)
{
    printf("Snapshot list:\n%-10s%-17s%8s%20s%13s%11s\n", "ID", "TAG", "VM SIZE", "DATE", "VM CLOCK", "ICOUNT");
    for (size_t k = 0; k < i->snapshot_count; k++) {
        const struct byre_snapshot_info *s = i->snapshots[k];
        char size[SIZE_TEXT_MAX], date[32] = "", clock[48], icount[24] = "";
        time_t sec = (time_t)s->date_sec;
        struct tm tm;
        uint64_t clock_s = s->vm_clock_ns / 1000000000u;
        if (localtime_r(&sec, &tm))
            strftime(date, sizeof date, "%Y-%m-%d %H:%M:%S", &tm);
        snprintf(clock, sizeof clock, "%02" PRIu64 ":%02" PRIu64 ":%02" PRIu64 ".%03" PRIu64, clock_s / 3600, clock_s / 60 % 60,
                 clock_s % 60, s->vm_clock_ns / 1000000u % 1000);
        if (s->has_icount)
            snprintf(icount, sizeof icount, "%" PRIu64, s->icount);
        printf("%-9s %-16s %8s%20s%13s%11s\n", s->id, s->name, size_format(s->vm_state_size, size), date, clock, icount);
    }
}

static void print_bitmaps(const struct byre_info *i)
{
    printf("    bitmaps:\n");
    for (size_t k = 0; k < i->bitmap_count; k++) {
        const struct byre_bitmap_info *b = i->bitmaps[k];
        int n = 0;
        printf("        [%zu]:\n            flags:\n", k);
        if (b->in_use)
            printf("                [%d]: in-use\n", n++);
        if (b->auto_on)
            printf("                [%d]: auto\n", n++);
        printf("            name: %s\n            granularity: %" PRIu32 "\n", b->name, b->granularity);
    }
}

/* Lines of an encrypt block, `in` blanks from the left. */
static void print_crypt(const struct byre_crypt_info *c, int in, bool nested)
{
    bool luks = strcmp(c->format, "luks") == 0;
    if (luks && c->ivgen_alg)
        printf("%*sivgen alg: %s\n", in, "", c->ivgen_alg);
    if (c->detached)
        printf("%*sdetached header: true\n", in, "");
    if (luks)
        printf("%*shash alg: %s\n%*scipher alg: %s\n%*suuid: %s\n", in, "", c->hash_alg, in, "", c->cipher_alg, in, "", c->uuid);
    if (c->ivgen_hash_alg)
        printf("%*sivgen hash alg: %s\n", in, "", c->ivgen_hash_alg);
    if (nested)
        printf("%*sformat: %s\n", in, "", c->format);
    if (!luks)
        return;
    printf("%*scipher mode: %s\n%*sslots:\n", in, "", c->cipher_mode, in, "");
    for (size_t k = 0; k < sizeof c->slots / sizeof c->slots[0]; k++) {
        const struct byre_key_slot *s = &c->slots[k];
        printf("%*s[%zu]:\n%*sactive: %s\n", in + 4, "", k, in + 8, "", yes_no(s->active));
        if (s->active)
            printf("%*siters: %" PRIu64 "\n", in + 8, "", s->iters);
        printf("%*skey offset: %" PRIu64 "\n", in + 8, "", s->key_offset);
        if (s->active)
            printf("%*sstripes: %" PRIu64 "\n", in + 8, "", s->stripes);
    }
    printf("%*spayload offset: %" PRIu64 "\n%*smaster key iters: %" PRIu64 "\n", in, "", c->payload_offset, in, "", c->master_key_iters);
}

void info_print_specific(const struct byre_info *i)
{
    if (!i->is_qcow2 && i->crypt) {
        printf("Format specific information:\n");
        print_crypt(i->crypt, 4, false);
    }
    if (!i->is_qcow2)
        return;
    printf("Format specific information:\n    compat: %s\n", i->version == 2 ? "0.10" : "1.1");
    if (i->has_data_file && i->data_file)
        printf("    data file: %s\n", i->data_file);
    printf("    compression type: %s\n", i->compression);
    if (i->version >= 3) {
        printf("    lazy refcounts: %s\n", yes_no(i->lazy_refcounts));
        if (i->bitmap_count)
            print_bitmaps(i);
        if (i->has_data_file)
            printf("    data file raw: %s\n", yes_no(i->data_file_raw));
        if (i->generation)
            printf("    generation: %" PRIu32 "%s\n", i->generation, i->others_wrote ? " (written by another program since)" : "");
        if (i->bitmaps_outdated)
            printf("    outdated bitmaps: %" PRIu32 " (written by a program that does not know of bitmaps)\n", i->bitmaps_outdated);
    }
    printf("    refcount bits: %u\n", i->refcount_bits);
    if (i->crypt) {
        printf("    encrypt:\n");
        print_crypt(i->crypt, 8, true);
    }
    if (i->version >= 3)
        printf("    corrupt: %s\n    extended l2: %s\n", yes_no(i->corrupt), yes_no(i->extended_l2));
}

static void print_info(const struct byre_info *i)
{
    char size[SIZE_TEXT_MAX];
    printf("image: %s\nfile format: %s\n", i->filename, i->format);
    printf("virtual size: %s (%" PRIu64 " bytes)\n", size_format(i->virtual_size, size), i->virtual_size);
    printf("disk size: %s\n", i->has_actual_size ? size_format(i->actual_size, size) : "unavailable");
    if (i->encrypted)
        printf("encrypted: yes\n");
    if (i->cluster_size)
        printf("cluster_size: %" PRIu64 "\n", i->cluster_size);
    if (i->dirty)
        printf("cleanly shut down: no\n");
    if (i->backing_filename) {
        printf("backing file: %s", i->backing_filename);
        if (!i->full_backing_filename)
            printf(" (cannot determine actual path)");
        else if (strcmp(i->full_backing_filename, i->backing_filename) != 0)
            printf(" (actual path: %s)", i->full_backing_filename);
        printf("\n");
    }
    if (i->backing_format)
        printf("backing file format: %s\n", i->backing_format);
    if (i->snapshot_count)
        info_print_snapshots(i);
    info_print_specific(i);
}

/* ---- the chain ---- */
struct seen { dev_t dev; ino_t ino; };

struct walk {
    struct run *r;
    const struct opts *o;
    struct byre_info **infos;
    struct seen *seen;
    size_t count;
};

/* Has this file been described already? Names that are no files are told apart by the limit alone. */
static bool seen_before(struct walk *w, const char *name, struct seen *ret)
{
    struct stat st;
    *ret = (struct seen){ 0, 0 };
    if (stat(name, &st))
        return false;
    *ret = (struct seen){ st.st_dev, st.st_ino };
    for (size_t i = 0; i < w->count; i++)
        if (w->seen[i].ino == st.st_ino && w->seen[i].dev == st.st_dev)
            return true;
    return false;
}

/* by: the image that records the name; NULL: it is the user's. */
static int add_image(struct walk *w, const char *name, const char *format, const char *by)
{
    struct run *r = w->r;
    struct byre_err err;
    struct seen id;
    struct open_args a = { .name = name, .format = format, .image_opts = !by && w->o->image_opts, .recorded_by = by,
        .flags = BYRE_OPEN_READ_ONLY | BYRE_OPEN_NO_BACKING | BYRE_OPEN_INFO | (w->o->force_share ? BYRE_OPEN_FORCE_SHARE : 0) };
    void *infos = reallocarray(w->infos, w->count + 1, sizeof *w->infos);
    w->infos = infos ? infos : w->infos;
    void *seen = reallocarray(w->seen, w->count + 1, sizeof *w->seen);
    w->seen = seen ? seen : w->seen;
    if (!infos || !seen || w->count >= CHAIN_MAX)
        return run_fail(r, "'%s': the backing chain is too long", name);
    struct byre_image *image = run_open(r, &a);
    if (!image)
        return 1;
    int code = 0;
    if (seen_before(w, byre_filename(image), &id))
        code = run_fail(r, "'%s': the backing chain leads back to this image", name);
    else if (byre_info_get(image, &w->infos[w->count], &err))
        code = run_fail_err(r, &err);
    else
        w->seen[w->count++] = id;
    run_close(r, image, &code);
    return code;
}

static int add_chain(struct walk *w)
{
    int code = add_image(w, w->r->argv[0], w->o->format, NULL);
    while (!code && w->o->chain) {
        const struct byre_info *i = w->infos[w->count - 1];
        const char *next = i->full_backing_filename ? i->full_backing_filename : i->backing_filename;
        if (!next)
            break;
        code = add_image(w, next, i->backing_format, i->filename ? i->filename : "");
    }
    return code;
}

static int emit_json(struct walk *w)
{
    struct json_out j;
    json_out_init(&j, true);
    if (w->o->chain)
        jo_open_arr(&j, NULL);
    for (size_t i = 0; i < w->count; i++)
        json_info(&j, w->infos[i]);
    if (w->o->chain)
        jo_close(&j);
    int e = json_out_error(&j);
    if (!e)
        printf("%s\n", j.text);
    json_out_fini(&j);
    return e ? run_fail(w->r, "no memory") : 0;
}

static void emit_text(struct walk *w)
{
    for (size_t i = 0; i < w->count; i++) {
        if (i)
            printf("\n");
        print_info(w->infos[i]);
    }
}

static int cmd_run(struct run *r)
{
    const struct opts *o = r->opts;
    struct walk w = { .r = r, .o = o };
    if (r->argc != 1)
        return run_usage(r, "exactly one image is needed");
    int json = run_output(r, o->output);
    if (json < 0 || !run_ctx(r, 0, BYRE_BACKEND_AUTO))
        return 1;
    int code = add_chain(&w);
    for (size_t i = 0; !code && i < w.count; i++)
        if (w.infos[i]->bitmaps_damaged)
            run_warn(r, "%s: damage in the bitmap directory (%zu entries); 'check' tells more", w.infos[i]->filename, w.infos[i]->bitmaps_damaged);
    if (!code && json)
        code = emit_json(&w);
    else if (!code)
        emit_text(&w);
    for (size_t i = 0; i < w.count; i++)
        byre_info_free(w.infos[i]);
    free(w.infos);
    free(w.seen);
    return code;
}

const struct cmd cmd_info = { "info", "FILE", "Describe an image", rows, sizeof(struct opts), cmd_run, .flags = 0 };
