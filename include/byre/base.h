/* SPDX-License-Identifier: MIT
 *
 * base.h: what every header of libbyre needs. Included by the others; there is no need to include it.
 *
 * Rules of the whole library
 *   - Calls return 0 or a positive result, or a negative errno. Outputs named ret_x are untouched on failure.
 *   - No global state, no output, no exit, no signal handlers. Threads are made by byre_ctx_new only.
 *   - Option structs begin with struct_size and are made by their _init function: members that are added later
 *     are then zero, which always means "as before". NULL in place of an option struct means all defaults.
 *   - Strings that a call takes are copied before it returns, unless stated.
 *   - 0.x: names and layouts may still change between minor versions.
 */
#ifndef BYRE_BASE_H
#define BYRE_BASE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "byre/error.h"

#if defined(__GNUC__)
#define BYRE_EXPORT __attribute__((visibility("default")))
#define BYRE_MUST_USE __attribute__((warn_unused_result))
#else
#define BYRE_EXPORT
#define BYRE_MUST_USE
#endif

/* Defines struct T's initialiser: struct T T_init(void). */
#define BYRE_DEFINE_INIT(T)          \
    static inline struct T T##_init(void) \
    {                                \
        struct T o;                  \
        memset(&o, 0, sizeof o);     \
        o.struct_size = sizeof o;    \
        return o;                    \
    }

struct byre_ctx;
struct byre_image;
struct byre_queue;
struct byre_job;
struct byre_export;

#endif
