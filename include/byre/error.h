/* SPDX-License-Identifier: MIT
 *
 * error.h: what went wrong, in a form that both people and programs can use.
 *
 * Every fallible call of libbyre returns 0 (or a positive result) on success and a negative errno on
 * failure. Calls of the control path (open, create, check, ...) also take a `struct byre_err *`: owned by
 * the caller, of fixed size, never allocated, may be NULL. It is written only on failure.
 */
#ifndef BYRE_ERROR_H
#define BYRE_ERROR_H

#ifdef __cplusplus
extern "C" {
#endif

#define BYRE_ERR_TEXT_MAX 512

struct byre_err {
    int code;                        /* negative errno, the same as the call returned */
    const char *reason;              /* stable name ("BACKING_LOOP"), static storage, never NULL after a failure */
    char text[BYRE_ERR_TEXT_MAX];    /* one sentence without a final newline: names file, field and value */
};

#ifdef __cplusplus
}
#endif
#endif
