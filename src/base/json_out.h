/* SPDX-License-Identifier: MIT
 *
 * json_out.h: writes JSON into a growing buffer. Commas, indentation and escapes are its business; parsing is not.
 *
 *     struct json_out j;  json_out_init(&j, true);
 *     jo_open_obj(&j, NULL);  jo_str(&j, "format", "qcow2");  jo_u64(&j, "virtual-size", n);  jo_close(&j);
 *     if (json_out_error(&j)) ...;  else use j.text, j.len_bytes;     json_out_fini(&j);
 *
 * key is NULL for elements of arrays and for the outermost value. Bytes that are no UTF-8 become U+FFFD. Errors
 * stick: check once at the end. Misuse (close without open, a key in an array) is asserted.
 */
#ifndef BASE_JSON_OUT_H
#define BASE_JSON_OUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define JSON_OUT_DEPTH_MAX 64

struct json_out {
    char *text;             /* always ends in 0; NULL before the first byte */
    size_t len_bytes, cap_bytes;
    uint64_t is_array;      /* one bit per open level */
    uint64_t has_element;
    unsigned depth;
    bool pretty;            /* four blanks a level, one member a line; else one line with ", " and ": " */
    int error;              /* 0 or -ENOMEM */
};

void json_out_init(struct json_out *j, bool pretty);
void json_out_fini(struct json_out *j);
/* Forgets the text, keeps the memory: for one object per line. */
void json_out_reset(struct json_out *j);
int json_out_error(const struct json_out *j);

void jo_open_obj(struct json_out *j, const char *key);
void jo_open_arr(struct json_out *j, const char *key);
void jo_close(struct json_out *j);
void jo_str(struct json_out *j, const char *key, const char *s);      /* s = NULL: null */
void jo_strn(struct json_out *j, const char *key, const char *s, size_t len_bytes);
void jo_u64(struct json_out *j, const char *key, uint64_t v);
void jo_i64(struct json_out *j, const char *key, int64_t v);
void jo_double(struct json_out *j, const char *key, double v);        /* not finite: null */
void jo_bool(struct json_out *j, const char *key, bool v);
void jo_null(struct json_out *j, const char *key);

#endif
