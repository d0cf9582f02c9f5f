/* SPDX-License-Identifier: MIT
 *
 * io.h: byre io, a shell for requests to one image, with the command language of qemu-io.
 *
 *   io_main.c    options of the program, -c commands, interactive mode
 *   io_shell.c   splitting lines, finding commands, their options, help
 *   io_text.c    numbers, sizes, reports, dumps, buffers
 *   io_rw.c      read readv write writev
 *   io_aio.c     aio_read aio_write aio_flush
 *   io_misc.c    flush length info discard clone truncate alloc map sleep sigraise abort quit
 *   io_break.c   break remove_break resume wait_break
 *   io_file.c    open close reopen
 */
#ifndef BIN_IO_IO_H
#define BIN_IO_IO_H

#include <time.h>

#include "bin/bin.h"

#define IO_LEN_MAX UINT64_C(2147483136)      /* longest request: 2^31 - 512 */

struct io_shell;

/* IO_CMD_* flags */
enum {
    IO_NO_FILE = 1u << 0,        /* works without an open image */
};

struct io_cmd {
    const char *name, *alt;      /* alt: short name, NULL: none */
    const char *args, *summary;
    const char *more;            /* paragraph of 'help NAME'; NULL: none */
    const struct opt_row *rows;  /* NULL: no options */
    size_t opts_bytes;
    int args_min, args_max;      /* words besides options; max -1: any number */
    unsigned flags;
    int (*run)(struct io_shell *s, const void *opts, int argc, char **argv);     /* 0, or 1: failed (told already) */
};

/* How an image is opened; kept for reopen. Strings are owned. */
struct io_open {
    char *name, *format;
    bool image_opts, read_only, force_share, discard, copy_on_read;
    int cache;                   /* enum byre_cache */
};

struct io_shell {
    struct run *r;
    struct byre_image *image;    /* NULL: none is open */
    struct io_open how;
    bool misalign, quit;
    bool breaks;                 /* requests of this image may stand still */
    struct byre_queue *queue;    /* of the aio commands; made by the first of them */
    struct io_aio *aio;          /* in flight */
};

/* ---- io_shell.c ---- */
extern const struct io_cmd *const io_commands[];      /* ends with NULL */
/* Runs one line. 0 or 1. */
int io_run_line(struct io_shell *s, const char *line);
int io_help(struct io_shell *s, const void *opts, int argc, char **argv);

/* ---- io_text.c ---- */
/* A number with suffix; false: told already. */
bool io_number(const char *word, uint64_t *ret);
/* A length that one request can have; false: told already. */
bool io_length(const char *word, uint64_t *ret);
bool io_pattern(const char *word, int *ret);          /* 0..255 */
#define IO_SIZE_TEXT 32
char *io_size(double bytes, char out[IO_SIZE_TEXT]);  /* "3.500 KiB" */
struct io_report { const char *verb; uint64_t off, asked, done; unsigned ops; bool quiet, machine; };
void io_report(const struct io_report *rep, const struct timespec *begin);
void io_dump(const uint8_t *buf, uint64_t off, uint64_t len);
/* "read failed: ..."; returns 1. */
int io_failed(const char *what, int error);
/* Bytes at buf differ from pattern? Told if so. */
bool io_verify(const uint8_t *buf, uint64_t off, uint64_t len, int pattern);

struct io_buf { uint8_t *mem, *data; uint64_t len; };
/* len bytes of `fill`, aligned to 4096 (misalign: 16 bytes off). false: told already. */
bool io_buf_new(struct io_shell *s, uint64_t len, int fill, struct io_buf *ret);
void io_buf_fini(struct io_buf *b);
/* Fills b with the repeated content of a file; false: told already. */
bool io_buf_from_file(struct io_buf *b, const char *path);

/* ---- io_file.c ---- */
int io_image_open(struct io_shell *s, const struct io_open *how);     /* copies `how`; 0 or 1 */
/* BYRE_BACKEND_* of a word of -i (NULL: none was given), or of -n; -1: told already. */
int io_backend(struct run *r, const char *aio, bool native, int cache);
int io_image_close(struct io_shell *s);                               /* waits for what is in flight */
void io_open_fini(struct io_open *how);
bool io_open_copy(struct io_open *to, const struct io_open *from);

/* ---- io_aio.c ---- */
/* Takes what has ended; wait: everything. */
void io_aio_reap(struct io_shell *s, bool wait);
void io_aio_close(struct io_shell *s);

extern const struct io_cmd io_cmd_read, io_cmd_readv, io_cmd_write, io_cmd_writev;
extern const struct io_cmd io_cmd_aio_read, io_cmd_aio_write, io_cmd_aio_flush;
extern const struct io_cmd io_cmd_break, io_cmd_remove_break, io_cmd_resume, io_cmd_wait_break;
extern const struct io_cmd io_cmd_open, io_cmd_close, io_cmd_reopen;
extern const struct io_cmd io_cmd_flush, io_cmd_truncate, io_cmd_length, io_cmd_info, io_cmd_discard, io_cmd_alloc, io_cmd_clone, io_cmd_map, io_cmd_sleep,
    io_cmd_sigraise, io_cmd_abort, io_cmd_quit, io_cmd_help;

#endif
