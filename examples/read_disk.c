/* SPDX-License-Identifier: MIT
 *
 * read_disk.c: reads a part of a disk with blocking calls and writes it to standard output.
 *
 *     read_disk FILE FORMAT OFFSET LENGTH >part
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <byre/byre.h>

static int copy_out(struct byre_image *image, uint64_t off, uint64_t len)
{
    static char buf[65536];
    while (len) {
        size_t n = len < sizeof buf ? (size_t)len : sizeof buf;
        int r = byre_read(image, buf, n, off);
        if (r < 0) {
            fprintf(stderr, "reading at %" PRIu64 " failed: %s\n", off, strerror(-r));
            return 1;
        }
        if (fwrite(buf, 1, n, stdout) != n)
            return 1;
        off += n;
        len -= n;
    }
    return fflush(stdout) ? 1 : 0;
}

int main(int argc, char **argv)
{
    struct byre_ctx *ctx;
    struct byre_image *image;
    struct byre_err err;
    if (argc != 5) {
        fprintf(stderr, "usage: read_disk FILE FORMAT OFFSET LENGTH\n");
        return 2;
    }

    /* This program does nothing beside reading: the calling thread may run the I/O. */
    struct byre_ctx_opts co = byre_ctx_opts_init();
    co.flags = BYRE_CTX_CALLER_RUNS;
    if (byre_ctx_new(&co, &ctx, &err)) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }

    /* The library guesses nothing by itself: the format is stated. */
    struct byre_open_opts oo = byre_open_opts_init();
    oo.flags = BYRE_OPEN_READ_ONLY;
    oo.format = argv[2];
    int code = 1;
    if (byre_open(ctx, argv[1], &oo, &image, &err)) {
        fprintf(stderr, "%s\n", err.text);
    } else {
        fprintf(stderr, "%s: %s, %" PRIu64 " bytes\n", byre_filename(image), byre_format(image), byre_size(image));
        code = copy_out(image, strtoull(argv[3], NULL, 0), strtoull(argv[4], NULL, 0));
        if (byre_close(image))
            code = 1;
    }
    byre_ctx_free(ctx);
    return code;
}
