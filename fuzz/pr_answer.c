/* SPDX-License-Identifier: MIT
 *
 * pr_answer.c: fuzz target for the answers of helpers for persistent reservations.
 *
 * Purpose      Plays an input as what comes back for a request: its head, and data behind it, taken apart in every way.
 * Input        one byte: its lowest bit says that the request was OUT; then the bytes
 * Invariants   I1 no more data is expected than was asked for, and none but of IN that went well.
 *              I2 a list ends, and holds no more entries than its bytes have room for.
 * Tests        built with -fsanitize=fuzzer for fuzzing, with replay_main.c for `make check` (corpus/pr_answer)
 */
#include "base/assert.h"
#include "proto/pr/pr_codec.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_head(const uint8_t *data, bool out)
{
    const struct prp_request rq = { .out = out };
    struct prp_head h;
    struct prp_sense s;
    if (prp_head_parse(data, &rq, &h, NULL))
        return;
    ASSERT(h.len_bytes <= PRP_DATA_MAX && (!h.len_bytes || (!out && h.status == PRP_GOOD)));     /* I1 */
    if (prp_sense_parse(h.sense, &s))
        ASSERT(s.key < 16);
}

static void read_lists(const uint8_t *data, size_t size)
{
    struct prp_keys k;
    struct prp_status st;
    struct prp_registrant g;
    uint64_t key;
    size_t room = size;
    if (!prp_keys_parse(data, size, &k, NULL))
        while (prp_keys_next(&k, &key)) {
            ASSERT(room >= 8);               /* I2 */
            room -= 8;
        }
    room = size;
    if (!prp_status_parse(data, size, &st, NULL))
        while (prp_status_next(&st, &g)) {
            ASSERT(room >= 24 && room - 24 >= g.transport_bytes);
            room -= 24 + g.transport_bytes;
            for (uint32_t i = 0; i < g.transport_bytes; i++)
                ASSERT(g.transport + i < data + size);
        }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct prp_reservation v;
    struct prp_capabilities c;
    if (!size)
        return 0;
    bool out = data[0] & 1;
    data++;
    size--;
    if (size >= PRP_HEAD_BYTES)
        read_head(data, out);
    size_t skip = size >= PRP_HEAD_BYTES ? PRP_HEAD_BYTES : 0;
    read_lists(data + skip, size - skip);
    if (!prp_reservation_parse(data + skip, size - skip, &v, NULL))
        ASSERT(v.scope < 16 && v.type < 16);
    if (!prp_capabilities_parse(data + skip, size - skip, &c, NULL))
        ASSERT(c.allows < 8 && c.types <= UINT16_MAX);
    return 0;
}
