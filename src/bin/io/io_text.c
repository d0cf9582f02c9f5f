/* SPDX-License-Identifier: MIT
 *
 * io_text.c: numbers in, reports out, and buffers.
 *
 * Purpose      What scripts read of the output is made here, in the form that qemu-io has.
 * Owns         struct io_buf
 * Invariants   none
 * Concurrency  main thread
 * Failure      told on standard error; results of requests on standard output
 * Tests        tests/cli/io_test.py
 */
#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "bin/io/io.h"

#define ALIGN 4096u
#define MISALIGN 16u

bool io_number(const char *word, uint64_t *ret)
{
    int e = size_parse(word, ret);
    if (!e && *ret <= INT64_MAX)
        return true;
    if (e == -EINVAL)
        printf("Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- %s\n", word);
    else
        printf("Parsing error: argument too large -- %s\n", word);
    return false;
}

bool io_length(const char *word, uint64_t *ret)
{
    if (!io_number(word, ret))
        return false;
    if (*ret > IO_LEN_MAX)
        printf("length cannot exceed %" PRIu64 ", given %s\n", IO_LEN_MAX, word);
    return *ret <= IO_LEN_MAX;
}

bool io_pattern(const char *word, int *ret)
{
    char *end;
    long v = strtol(word, &end, 0);
    if (end == word || *end || v < 0 || v > 255) {
        printf("%s is not a valid pattern byte\n", word);
        return false;
    }
    *ret = (int)v;
    return true;
}

char *io_size(double bytes, char out[IO_SIZE_TEXT])
{
    static const char *const units[] = { "bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
    char num[24];
    int u = 0;
    while (u < 6 && bytes >= 1024.0) {
        bytes /= 1024.0;
        u++;
    }
    snprintf(num, sizeof num, u ? "%.3f" : "%f", bytes);
    char *dot = strchr(num, '.');
    if (dot && strspn(dot + 1, "0") == strlen(dot + 1))
        *dot = 0;
    snprintf(out, IO_SIZE_TEXT, "%s %s", num, units[u]);
    return out;
}

static double seconds_since(const struct timespec *begin)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)(now.tv_sec - begin->tv_sec) + (double)(now.tv_nsec - begin->tv_nsec) / 1e9;
}

static void time_text(double s, bool machine, char out[32])
{
    uint64_t cs = (uint64_t)(s * 100);
    unsigned h = (unsigned)(cs / 360000), m = (unsigned)(cs / 6000 % 60), sec = (unsigned)(cs / 100 % 60);
    if (machine || h)
        snprintf(out, 32, "%u:%02u:%02u.%02u", h, m, sec, (unsigned)(cs % 100));
    else if (m)
        snprintf(out, 32, "%02u:%02u.%02u", m, sec, (unsigned)(cs % 100));
    else
        snprintf(out, 32, "%02u.%02u sec", sec, (unsigned)(cs % 100));
}

void io_report(const struct io_report *rep, const struct timespec *begin)
{
    char t[32], total[IO_SIZE_TEXT], rate[IO_SIZE_TEXT];
    double s = seconds_since(begin);
    if (s <= 0)
        s = 1e-9;
    if (rep->quiet)
        return;
    time_text(s, rep->machine, t);
    if (rep->machine) {
        printf("%" PRIu64 ",%u,%s,%.3f,%.3f\n", rep->done, rep->ops, t, (double)rep->done / s, (double)rep->ops / s);
        return;
    }
    printf("%s %" PRIu64 "/%" PRIu64 " bytes at offset %" PRIu64 "\n", rep->verb, rep->done, rep->asked, rep->off);
    printf("%s, %u ops; %s (%s/sec and %.4f ops/sec)\n", io_size((double)rep->done, total), rep->ops, t, io_size((double)rep->done / s, rate),
           (double)rep->ops / s);
}

void io_dump(const uint8_t *buf, uint64_t off, uint64_t len)
{
    for (uint64_t i = 0; i < len; i += 16) {
        uint64_t n = len - i < 16 ? len - i : 16;
        printf("%08" PRIx64 ":  ", off + i);
        for (uint64_t k = 0; k < n; k++)
            printf("%02x ", buf[i + k]);
        printf(" ");
        for (uint64_t k = 0; k < n; k++)
            putchar(isalnum(buf[i + k]) ? buf[i + k] : '.');
        printf("\n");
    }
}

int io_failed(const char *what, int error)
{
    printf("%s failed: %s\n", what, strerror(error < 0 ? -error : error));
    return 1;
}

bool io_verify(const uint8_t *buf, uint64_t off, uint64_t len, int pattern)
{
    for (uint64_t i = 0; i < len; i++) {
        if (buf[i] != (uint8_t)pattern) {
            printf("Pattern verification failed at offset %" PRIu64 ", %" PRIu64 " bytes\n", off, len);
            return false;
        }
    }
    return true;
}

bool io_buf_new(struct io_shell *s, uint64_t len, int fill, struct io_buf *ret)
{
    uint64_t off = s->misalign ? MISALIGN : 0;
    uint8_t *mem = aligned_alloc(ALIGN, (len + off + ALIGN) / ALIGN * ALIGN);
    if (!mem) {
        run_fail(s->r, "no memory for %" PRIu64 " bytes", len);
        return false;
    }
    memset(mem + off, fill, len);
    *ret = (struct io_buf){ mem, mem + off, len };
    return true;
}

void io_buf_fini(struct io_buf *b)
{
    free(b->mem);
    *b = (struct io_buf){ 0 };
}

bool io_buf_from_file(struct io_buf *b, const char *path)
{
    FILE *f = fopen(path, "rb");
    if (!f) {
        printf("%s: %s\n", path, strerror(errno));
        return false;
    }
    size_t got = b->len ? fread(b->data, 1, b->len, f) : 0;
    bool bad = ferror(f);
    fclose(f);
    if (bad || (!got && b->len)) {
        printf(bad ? "%s: file read error\n" : "%s: file is empty\n", path);
        return false;
    }
    for (uint64_t at = got; at < b->len; at += got)
        memcpy(b->data + at, b->data, b->len - at < got ? b->len - at : got);
    return true;
}
