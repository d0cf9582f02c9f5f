/* SPDX-License-Identifier: MIT
 *
 * fmt.c: which formats are there, and which one is this file?
 *
 * Purpose     The list of formats, probing by first bytes, and signatures of formats that are known but not read.
 * Owns        Nothing: two constant tables.
 * Invariants  I1  raw is the last resort: it answers any content, with the lowest score.
 *             I2  Every format of the list has a probe, open, map, flush, info, close.
 * Order       None: nothing is written here.
 * Concurrency Pure functions.
 * Failure     Lookups answer NULL.
 * Tests       raw/raw_test.c
 */
#include <stdlib.h>
#include <string.h>

#include "fmt/fmt.h"

static const struct fmt_ops *const formats[] = {
    &fmt_qcow2_ops,
    &fmt_luks_ops,
    &fmt_qed_ops,
    &fmt_raw_ops,
};
#define FORMAT_COUNT (sizeof formats / sizeof formats[0])

const struct fmt_ops *fmt_nth(unsigned i)
{
    return i < FORMAT_COUNT ? formats[i] : NULL;
}

const struct fmt_ops *fmt_by_name(const char *name)
{
    for (unsigned i = 0; i < FORMAT_COUNT; i++)
        if (!strcmp(formats[i]->name, name))
            return formats[i];
    return NULL;
}

const struct fmt_ops *fmt_probe(const uint8_t *buf, size_t len)
{
    const struct fmt_ops *best = &fmt_raw_ops;
    int best_score = 0;
    for (unsigned i = 0; i < FORMAT_COUNT; i++) {
        int score = formats[i]->probe(buf, len);
        if (score > best_score) {
            best = formats[i];
            best_score = score;
        }
    }
    return best;
}

/* What other programs recognise by its first 512 bytes. All from published descriptions of the formats. */
static const struct signature { const char *format; uint16_t off; uint8_t len; const char *bytes; } signatures[] = {
    { "qcow", 0, 8, "QFI\xfb\0\0\0\1" },
    { "qed", 0, 4, "QED\0" },
    { "luks", 0, 6, "LUKS\xba\xbe" },
    { "vhdx", 0, 8, "vhdxfile" },
    { "vpc", 0, 8, "conectix" },
    { "vdi", 64, 4, "\x7f\x10\xda\xbe" },
    { "vmdk", 0, 4, "KDMV" },
    { "vmdk", 0, 4, "COWD" },
    { "vmdk", 0, 21, "# Disk DescriptorFile" },
    { "parallels", 0, 16, "WithoutFreeSpace" },
    { "parallels", 0, 16, "WithouFreSpacExt" },
    { "bochs", 0, 23, "Bochs Virtual HD Image\0" },
    { "cloop", 0, 17, "#!/bin/sh\n#V2.0 F" },
};

const char *fmt_signature(const uint8_t *buf, size_t len)
{
    if (fmt_qcow2_ops.probe(buf, len) > 0)        /* every version from 2 on */
        return fmt_qcow2_ops.name;
    for (size_t i = 0; i < sizeof signatures / sizeof signatures[0]; i++) {
        const struct signature *s = &signatures[i];
        if (len >= (size_t)s->off + s->len && !memcmp(buf + s->off, s->bytes, s->len))
            return s->format;
    }
    return NULL;
}

void fmt_snapshot_fini(struct fmt_snapshot_info *s)
{
    free(s->id);
    free(s->name);
    *s = (struct fmt_snapshot_info){ 0 };
}

void fmt_info_fini(struct fmt_info *info)
{
    for (size_t i = 0; i < info->snapshot_count; i++)
        fmt_snapshot_fini(&info->snapshots[i]);
    for (size_t i = 0; i < info->bitmap_count; i++)
        free(info->bitmaps[i].name);
    free(info->snapshots);
    free(info->bitmaps);
    free(info->backing_name);
    free(info->backing_format);
    free(info->data_file);
    free(info->crypt);
    *info = (struct fmt_info){ 0 };
}

void fmt_peek_fini(struct fmt_peek *p)
{
    free(p->backing_format);
    free(p->data_file);
    *p = (struct fmt_peek){ 0 };
}
