/* SPDX-License-Identifier: MIT
 *
 * serve_disk.c: serves a disk over NBD until standard input ends.
 *
 *     serve_disk FILE FORMAT unix:/path/of/a/socket
 */
#include <stdio.h>

#include <byre/byre.h>

static int serve(struct byre_image *image, const char *address)
{
    struct byre_err err;
    struct byre_export *export;
    struct byre_nbd_opts no = byre_nbd_opts_init();
    no.address = address;
    no.name = "disk";
    if (byre_export_nbd(image, &no, &export, &err)) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    printf("%s\n", byre_export_uri(export));
    fflush(stdout);
    while (getchar() != EOF)            /* clients are served by the library's threads meanwhile */
        ;
    byre_export_stop(export);
    return 0;
}

int main(int argc, char **argv)
{
    struct byre_ctx *ctx;
    struct byre_image *image;
    struct byre_err err;
    struct byre_open_opts oo = byre_open_opts_init();
    int code = 1;
    if (argc != 4) {
        fprintf(stderr, "usage: serve_disk FILE FORMAT ADDRESS\n");
        return 2;
    }
    struct byre_ctx_opts co = byre_ctx_opts_init();
    co.loops = 2;
    if (byre_ctx_new(&co, &ctx, &err)) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    oo.format = argv[2];
    if (byre_open(ctx, argv[1], &oo, &image, &err)) {
        fprintf(stderr, "%s\n", err.text);
    } else {
        code = serve(image, argv[3]);
        if (byre_close(image) < 0)      /* flushes: a failure here is a failure of the whole */
            code = 1;
    }
    byre_ctx_free(ctx);
    return code;
}
