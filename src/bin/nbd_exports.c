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

int nbd_exports_print(struct run *r, const char *socket, const char *host, unsigned port)
{
    struct byre_nbd_list *list;
    struct byre_err err;
    AUTOFREE char *name = NULL;
    int n = socket ? asprintf(&name, "nbd:unix:%s", socket) : asprintf(&name, host && host[0] != '[' && strchr(host, ':') ? "nbd:[%s]:%u" : "nbd:%s:%u",
                                                                       host ? host : "localhost", port);
    if (n < 0) {
        name = NULL;
        return run_fail(r, "no memory");
    }
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
