/* SPDX-License-Identifier: MIT
 *
 * nbd_complaint.c: fuzz target for the answers of NBD servers that refuse a request.
 *
 * Purpose      Plays an input as the bytes that lie in a client's socket, as they arrive: first one of them, then two, and so on.
 * Input        the bytes
 * Invariants   I1 as long as there is not enough, more is asked for than there is, and never more than the protocol allows.
 *              I2 a complaint of so many bytes is the same whatever follows it, and nothing but printable text comes out.
 * Tests        built with -fsanitize=fuzzer for fuzzing, with replay_main.c for `make check` (corpus/nbd_complaint)
 */
#include <string.h>

#include "base/assert.h"
#include "proto/nbd/nbd_complaint.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const uint8_t *data, size_t size, size_t need, const struct nbdp_complaint *c)
{
    struct nbdp_complaint again;
    ASSERT(need <= size && memchr(c->text, 0, sizeof c->text));
    for (const char *t = c->text; *t; t++)
        ASSERT(*t >= ' ' && *t <= '~');
    ASSERT(nbdp_complaint_parse(data, need, &again) == need && again.cookie == c->cookie && again.off == c->off && !strcmp(again.text, c->text));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t have = size ? 1 : 0;
    for (size_t need; have && have <= size; have++) {
        struct nbdp_complaint c;
        need = nbdp_complaint_parse(data, have, &c);
        ASSERT(need <= NBDP_COMPLAINT_MAX);      /* I1 */
        if (!need)
            break;
        if (need <= have) {
            check(data, size, need, &c);
            break;
        }
    }
    return 0;
}
