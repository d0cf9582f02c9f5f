/* SPDX-License-Identifier: MIT
 *
 * qed_rebase.c: another backing file (2.019).
 *
 * Purpose      Judges the name; one sector of the header then says it (qed_mark.c).
 * Owns         Nothing.
 * Invariants   R1  What can be refused is refused before anything is written.
 *              R2  The header names the old file or the new one, whole, at every moment.
 * Order        E6. What the new chain does not supply is durable before the call (J3).
 * Concurrency  Home loop, drained; a scrub may run.
 * Failure      The old name.
 * Tests        qed_rebase_test.c, tests/interop/test_qed_rebase.py, crash explorer (qed-chain)
 */
#include <inttypes.h>
#include <string.h>

#include "base/assert.h"
#include "fmt/qed/qed_image.h"

static bool can_be_stored(const char *name)
{
    for (; *name; name++)
        if ((uint8_t)*name < 0x20 || *name == 0x7f)
            return false;
    return true;
}

static int judge(const struct qed_image *q, const char *file, struct byre_err *err)
{
    if (q->h.compat)
        return byre_fail(err, NOT_SUPPORTED, "%s: has compatible features %#" PRIx64 " that are not known here, so its backing file is not changed", q->name, q->h.compat);
    if (file && (!*file || !can_be_stored(file)))
        return byre_fail(err, BAD_OPTION, "%s: a name %s cannot be stored as that of the backing file", q->name, *file ? "with control characters" : "without characters");
    if (file && strlen(file) > QED_NAME_MAX)
        return byre_fail(err, NO_SPACE, "%s: the name of the new backing file has %zu bytes; a header has room for %u", q->name, strlen(file), QED_NAME_MAX);
    return 0;
}

int qed_rebase(struct co *co, struct qed_image *q, const struct fmt_amend_opts *a, struct byre_err *err)
{
    const char *file = a->o->backing_file, *format = a->o->backing_fmt;
    ASSERT_LOOP(q->im.home);
    if (a->partial || a->token)
        return byre_fail(err, NOT_SUPPORTED, "%s: images of the format qed cannot say of themselves that they are parts", q->name);
    int r = judge(q, file, err);
    if (r < 0 || a->dry_run)
        return r;
    r = qed_set_backing(co, q, file, format && !strcmp(format, "raw"));
    if (r < 0)
        return byre_fail_code(err, IO, r, "%s: the name of the backing file cannot be written: %s", q->name, strerror(-r));
    q->im.has_backing = file;
    return 0;
}
