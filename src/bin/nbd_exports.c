/* SPDX-License-Identifier: MIT
 *
 * nbd_exports.c: what `byre nbd --list` prints.
 *
 * Purpose      The exports of a server in the lines of qemu-nbd, which scripts read.
 * Owns         nothing
 * Invariants   I1 a server's words cannot pass for other lines: what is no character is written as \xNN
 * Concurrency  main thread
 * Failure      exit 1
 * Tests        tests/daemon/nbd_list_test.py
 */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "bin/bin.h"
#include "bin/nbd_exports.h"
#include "byre/nbd.h"

static const char *const flag_words[] = {
    "", "readonly", "flush", "fua", "rotational", "trim", "zeroes", "df", "multi", "resize", "cache", "fast-zero", "block-status-payload",
};

static void print_line(const char *head, const char *text, const char *tail)
{
    fputs(head, stdout);
    run_put_text(stdout, text);
    puts(tail);
}

static void print_size(const char *head, uint64_t n)
{
    if (n)
        printf("%s%" PRIu64 "\n", head, n);
}

static void print_export(const struct byre_nbd_export *x)
{
    print_line(" export: '", x->name, "'");
    if (x->description)
        print_line("  description: ", x->description, "");
    if (x->unknown) {
        print_line("  not known: ", x->unknown, "");
        return;
    }
    printf("  size:  %" PRIu64 "\n  flags: 0x%x (", x->size, (unsigned)x->flags);
    for (size_t i = 1; i < sizeof flag_words / sizeof flag_words[0]; i++)
        if (x->flags >> i & 1)
            printf(" %s", flag_words[i]);
    puts(" )");
    print_size("  min block: ", x->min_block);
    print_size("  opt block: ", x->preferred_block);
    print_size("  max block: ", x->max_block);
    if (x->context_count)
        printf("  available meta contexts: %u\n", x->context_count);
    for (unsigned i = 0; i < x->context_count; i++)
        print_line("   ", x->contexts[i], "");
}

/* Its name for byre_nbd_list; NULL: no memory. */
static char *name_of(const struct nbd_exports_of *of)
{
    char port[16];
    snprintf(port, sizeof port, "%u", of->port);
    bool bracket = of->host && of->host[0] == '[' && of->host[1] && of->host[strlen(of->host) - 1] == ']';
    AUTOFREE char *host = strndup(of->host ? of->host + bracket : "localhost", of->host ? strlen(of->host) - 2 * (size_t)bracket : SIZE_MAX);
    json_t *o = !host ? NULL : of->socket ? json_pack("{s:s,s:{s:s,s:s}}", "driver", "nbd", "server", "type", "unix", "path", of->socket)
                                          : json_pack("{s:s,s:{s:s,s:s,s:s}}", "driver", "nbd", "server", "type", "inet", "host", host, "port", port);
    bool good = o && (!of->tls_creds || json_object_set_new(o, "tls-creds", json_string(of->tls_creds)) == 0) &&
                (!of->tls_hostname || json_object_set_new(o, "tls-hostname", json_string(of->tls_hostname)) == 0);
    AUTOFREE char *text = good ? json_dumps(o, JSON_COMPACT) : NULL;
    char *name = NULL;
    json_decref(o);
    return text && asprintf(&name, "json:%s", text) >= 0 ? name : NULL;
}

int nbd_exports_print(struct run *r, const struct nbd_exports_of *of)
{
    struct byre_nbd_list *list;
    struct byre_err err;
    AUTOFREE char *name = name_of(of);
    if (!name)
        return run_fail(r, "no memory");
    if (!run_ctx(r, 0, BYRE_BACKEND_AUTO))
        return 1;
    if (byre_nbd_list(r->ctx, name, &list, &err))
        return run_fail_err(r, &err);
    printf("exports available: %u\n", byre_nbd_list_count(list));
    for (unsigned i = 0; i < byre_nbd_list_count(list); i++) {
        struct byre_nbd_export x = byre_nbd_list_get(list, i);
        print_export(&x);
    }
    byre_nbd_list_free(list);
    return 0;
}
