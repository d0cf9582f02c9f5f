/* SPDX-License-Identifier: MIT
 *
 * check_online.c: byre check --control: the check of a disk that a server has in use (FEATURES G.001).
 *
 * Purpose      Runs the job x-byre-scrub (online.c), and takes its result from query-jobs.
 * Owns         nothing
 * Invariants   none
 * Concurrency  main thread
 * Failure      message on standard error, exit code 1
 * Tests        tests/cli/scrub_test.py
 */
#include <string.h>

#include "bin/check_online.h"
#include "bin/online.h"
#include "bin/qmp_link.h"

static void tell_findings(const json_t *check)
{
    size_t i;
    json_t *f, *list = json_object_get(check, "findings");
    json_array_foreach(list, i, f)
        fprintf(stderr, "%s%s\n", json_is_true(json_object_get(f, "fixed")) ? "Repaired: " : "", qmp_link_text(f, "text"));
    if (qmp_link_number(check, "findings-total") > json_array_size(list))
        fprintf(stderr, "%llu more findings are counted only\n", (unsigned long long)(qmp_link_number(check, "findings-total") - json_array_size(list)));
}

static int take_result(struct run *r, const json_t *job, struct byre_check_result *ret)
{
    const json_t *c = json_object_get(job, "x-byre-check");
    const char *error = qmp_link_text(job, "error");
    bool found = qmp_link_number(c, "corruptions") || qmp_link_number(c, "check-errors");
    if (!c || (*error && !found))
        return run_fail(r, "Check failed: %s", *error ? error : "the server gives no result");
    if (!qmp_link_number(c, "total-clusters"))
        return run_fail(r, "Check failed: the job was cancelled");
    tell_findings(c);
    *ret = byre_check_result_init();
    ret->corruptions = qmp_link_number(c, "corruptions");
    ret->leaks = qmp_link_number(c, "leaks");
    ret->check_errors = qmp_link_number(c, "check-errors");
    ret->corruptions_fixed = qmp_link_number(c, "corruptions-fixed");
    ret->leaks_fixed = qmp_link_number(c, "leaks-fixed");
    ret->has_stats = 1;
    ret->total_clusters = qmp_link_number(c, "total-clusters");
    ret->allocated_clusters = qmp_link_number(c, "allocated-clusters");
    ret->fragmented_clusters = qmp_link_number(c, "fragmented-clusters");
    ret->compressed_clusters = qmp_link_number(c, "compressed-clusters");
    ret->image_end_offset = qmp_link_number(c, "image-end-offset");
    return 0;
}

int check_online(struct run *r, const struct check_online *c, struct byre_check_result *ret, char **ret_filename, char **ret_format)
{
    struct online o = { .path = c->path, .node = c->node, .command = "x-byre-scrub", .word = "check", .progress = c->progress,
                        .args = json_pack("{s:s}", "fix", c->fix_leaks ? "leaks" : "none") };
    int code = online_run(r, &o);
    if (!code)
        code = take_result(r, o.job, ret);
    if (!code) {
        *ret_filename = o.filename;
        *ret_format = o.format;
        o.filename = o.format = NULL;
    }
    online_fini(&o);
    return code;
}
