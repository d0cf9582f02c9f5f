/* SPDX-License-Identifier: MIT
 *
 * qmp_input.c: fuzz target for what clients of the control socket send.
 *
 * Purpose      Plays an input as a client's bytes: they are cut into texts, each text is taken apart as a command, and answered.
 * Input        byte 0: bits 0..1 limits (0: the usual ones, else small ones); bits 2..7: pieces of so many bytes, and one more. The rest is the stream.
 * Invariants   I1 what comes out does not depend on the pieces in which the bytes arrive.
 *              I2 no text is longer or deeper than the limits say; behind a limit nothing more comes.
 *              I3 a command has a name, and its id can be written in an answer, which is one line of JSON.
 * Tests        built with -fsanitize=fuzzer for fuzzing, with replay_main.c for `make check` (corpus/qmp_input)
 */
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "proto/qmp/qmp.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What came out, in order. */
struct heard { unsigned texts, bad, commands; bool over; uint64_t sum; };

static void check_line(const struct qmp_text *t)
{
    json_t *back = json_loadb(t->text, t->len, 0, NULL);
    ASSERT(t->len > 2 && !memcmp(t->text + t->len - 2, "\r\n", 2) && memchr(t->text, '\n', t->len) == t->text + t->len - 1);
    ASSERT(json_is_object(back));
    json_decref(back);
    free(t->text);
}

static void answer(struct qmp_command *cmd, int r, const struct byre_err *err)
{
    struct qmp_text t;
    const struct qmp_error e = { NULL, err->text };
    ASSERT(r == -EINVAL || (!r && cmd->name && cmd->root));
    ASSERT(r || !cmd->arguments || json_is_object(cmd->arguments));
    if (r ? !qmp_make_error(&e, cmd->id, false, &t) : !qmp_make_return(cmd->arguments, cmd->id, false, &t))
        check_line(&t);                      /* I3; JSON knows numbers that cannot be written again */
}

static void take_text(const struct qmp_split *s, const struct qmp_limits *l, struct heard *h)
{
    struct qmp_command cmd = { 0 };
    struct byre_err err = { 0 };
    size_t len;
    const char *text = qmp_split_text(s, &len);
    ASSERT(len && len <= l->bytes_max && !text[len]);      /* I2 */
    h->texts++;
    for (size_t i = 0; i < len; i++)
        h->sum = h->sum * 31 + (uint8_t)text[i];
    int r = qmp_command_parse(text, len, &cmd, &err);
    h->commands += !r;
    answer(&cmd, r, &err);
    qmp_command_fini(&cmd);
}

static struct heard play(const struct qmp_limits *l, const char *data, size_t size, size_t piece)
{
    struct heard h = { 0 };
    struct qmp_split *s;
    ASSERT(!qmp_split_new(l, &s));
    for (size_t at = 0; at < size && !h.over;) {
        size_t n = piece && piece < size - at ? piece : size - at, used = 0;
        enum qmp_item item = qmp_split_feed(s, data + at, n, &used);
        ASSERT(used <= n && (used || item != QMP_MORE));
        at += used;
        if (item == QMP_TEXT)
            take_text(s, l, &h);
        h.bad += item == QMP_BAD;
        h.over = item == QMP_LIMIT;
        ASSERT((item != QMP_BAD && item != QMP_LIMIT) || qmp_split_why(s)[0]);
    }
    qmp_split_free(s);
    return h;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct qmp_limits limits[] = { { QMP_BYTES_MAX, QMP_DEPTH_MAX, QMP_TOKENS_MAX }, { 64, 64, 64 }, { 4096, 3, 64 }, { 4096, 64, 8 } };
    if (!size)
        return 0;
    const struct qmp_limits *l = &limits[data[0] & 3];
    struct heard a = play(l, (const char *)data + 1, size - 1, 0), b = play(l, (const char *)data + 1, size - 1, (size_t)(data[0] >> 2) + 1);
    ASSERT(a.texts == b.texts && a.bad == b.bad && a.commands == b.commands && a.over == b.over && a.sum == b.sum);      /* I1 */
    return 0;
}
