/* SPDX-License-Identifier: MIT
 *
 * cmd_ringbuf.c: ringbuf-write, ringbuf-read (FEATURES 8.022).
 *
 * Purpose      A character device that keeps the last bytes written to it.
 * Owns         nothing; the bytes belong to the device (chardev.h)
 * Invariants   I1 what comes out of utf8 is valid UTF-8: other bytes come out as U+FFFD
 * Concurrency  home loop
 * Failure      as ctl_priv.h
 * Tests        tests/daemon/chardev_test.py
 */
#include <nettle/base64.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "ctl/chardev.h"

static const char *const format_words[] = { "utf8", "base64", NULL };
static const struct ctl_shape format_shape = { .name = "DataFormat", .words = format_words };

static struct chardev *ring_of(struct ctl_call *call, const char *id)
{
    struct chardev *d = chardev_find(call->c, id);
    if (!d)
        (void)byre_fail(&call->err, NOT_FOUND, "Device '%s' not found", id);
    else if (!d->ring)
        (void)byre_fail(&call->err, BAD_ARGUMENT, "%s is not a ringbuf device", id);
    return d && d->ring ? d : NULL;
}

static void put(struct chardev *d, const uint8_t *data, size_t len)
{
    for (size_t i = 0; i < len; i++)
        d->ring[d->ring_in++ & (d->ring_bytes - 1)] = data[i];
    if (d->ring_in - d->ring_out > d->ring_bytes)
        d->ring_out = d->ring_in - d->ring_bytes;
}

/* ---- ringbuf-write ---- */
struct write_args { const char *device, *data; int format; };
static const struct ctl_arg write_rows[] = {
    { "device", CTL_STR, true, CTL_AT(struct write_args, device) },
    { "data", CTL_STR, true, CTL_AT(struct write_args, data) },
    { "format", CTL_ENUM, false, CTL_AT(struct write_args, format), .of = &format_shape, .doc = "What the data are written in; utf8 when it is not given." },
    CTL_ARGS_END
};

static int run_write(struct co *co, struct ctl_call *call)
{
    const struct write_args *a = call->args;
    struct chardev *d = ring_of(call, a->device);
    struct base64_decode_ctx ctx;
    size_t len = strlen(a->data), got = 0;
    ASSERT(co);
    if (!d)
        return call->err.code;
    if (!a->format) {
        put(d, (const uint8_t *)a->data, len);
        return 0;
    }
    AUTOFREE uint8_t *bytes = malloc(BASE64_DECODE_LENGTH(len));
    if (!bytes)
        return byre_fail(&call->err, NOMEM, "no memory for the data");
    base64_decode_init(&ctx);
    if (!base64_decode_update(&ctx, &got, bytes, len, a->data) || !base64_decode_final(&ctx))
        return byre_fail(&call->err, BAD_ARGUMENT, "the data are not base64");
    put(d, bytes, got);
    return 0;
}

/* ---- ringbuf-read ---- */
struct read_args { const char *device; int64_t size; int format; };
static const struct ctl_arg read_rows[] = {
    { "device", CTL_STR, true, CTL_AT(struct read_args, device) },
    { "size", CTL_INT, true, CTL_AT(struct read_args, size), .doc = "At most so many bytes, which are gone then." },
    { "format", CTL_ENUM, false, CTL_AT(struct read_args, format), .of = &format_shape },
    CTL_ARGS_END
};

/* How many of the len > 0 bytes are one character; 0: none. */
static size_t character(const uint8_t *b, size_t len)
{
    static const struct { uint8_t mask, lead; uint32_t least; } all[] = { { 0x80, 0, 0 }, { 0xe0, 0xc0, 0x80 }, { 0xf0, 0xe0, 0x800 }, { 0xf8, 0xf0, 0x10000 } };
    size_t n = 0;
    while (n < 4 && (b[0] & all[n].mask) != all[n].lead)
        n++;
    if (n == 4 || len < n + 1)
        return 0;
    uint32_t c = b[0] & (uint8_t)~all[n].mask;
    for (size_t i = 1; i <= n; i++) {
        if ((b[i] & 0xc0) != 0x80)
            return 0;
        c = c << 6 | (b[i] & 0x3f);
    }
    return !c || c < all[n].least || c > 0x10ffff || (c >= 0xd800 && c < 0xe000) ? 0 : n + 1;
}

/* I1; a zero byte too cannot be told. Owned by the caller. */
static char *as_text(const uint8_t *b, size_t len)
{
    char *text = malloc(3 * len + 1), *to = text;
    for (size_t i = 0, n; text && i < len; i += n ? n : 1) {
        n = character(b + i, len - i);
        memcpy(to, n ? (const char *)b + i : "\xef\xbf\xbd", n ? n : 3);
        to += n ? n : 3;
    }
    if (text)
        *to = 0;
    return text;
}

static char *as_base64(const uint8_t *b, size_t len)
{
    char *text = malloc(BASE64_ENCODE_RAW_LENGTH(len) + 1);
    if (!text)
        return NULL;
    base64_encode_raw(text, len, b);
    text[BASE64_ENCODE_RAW_LENGTH(len)] = 0;
    return text;
}

static int run_read(struct co *co, struct ctl_call *call)
{
    const struct read_args *a = call->args;
    struct chardev *d = ring_of(call, a->device);
    ASSERT(co);
    if (!d)
        return call->err.code;
    if (a->size <= 0)
        return byre_fail(&call->err, BAD_ARGUMENT, "size must be greater than zero");
    size_t len = (size_t)min_u64((uint64_t)a->size, d->ring_in - d->ring_out);
    AUTOFREE uint8_t *bytes = malloc(len + 1);
    for (size_t i = 0; bytes && i < len; i++)
        bytes[i] = d->ring[(d->ring_out + i) & (d->ring_bytes - 1)];
    AUTOFREE char *text = !bytes ? NULL : a->format ? as_base64(bytes, len) : as_text(bytes, len);
    call->ret = text ? json_string(text) : NULL;
    if (!call->ret)
        return ctl_no_memory(call);
    d->ring_out += len;
    return 0;
}

static const struct ctl_arg ret_text = { "data", CTL_STR, true, CTL_AT_NONE };
const struct ctl_command ctl_cmd_ringbuf_read = { "ringbuf-read", read_rows, sizeof(struct read_args), run_read, .ret = &ret_text,
    .doc = "Takes the oldest bytes out of a character device that keeps some. Bytes that are no text come out as U+FFFD, or ask for base64." };
const struct ctl_command ctl_cmd_ringbuf_write = { "ringbuf-write", write_rows, sizeof(struct write_args), run_write,
    .doc = "Puts bytes into such a device, over the oldest ones when it is full." };
