/* SPDX-License-Identifier: MIT
 *
 * dlib.h: shared libraries that are loaded when they are first needed.
 *
 * What only some disks need (NBD servers, TLS) would cost every start otherwise: the dynamic loader reads such a library and all that it
 * is made of, relocates them and runs their constructors, which takes more time than to open a disk.
 *
 *     struct zip_lib { __typeof__(zip_open) *open; __typeof__(zip_close) *close; } zip_lib;
 *     static const char *const names[] = { "zip_open", "zip_close" };            the members, in their order
 *     static struct rt_dlib zip_dlib = RT_DLIB("libzip.so.5", "packed disks", zip_lib, names);
 *     RT_DLIB_NOTE(zip, "[{\"feature\":\"zip\",...}]");                          for packagers' tools
 */
#ifndef RT_DLIB_H
#define RT_DLIB_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "rt/co.h"

struct rt_dlib {
    const char *soname, *use;             /* use: what it is needed for, for messages */
    const char *const *names;
    void **functions;                     /* the table: constant once `ready` is seen */
    unsigned count;
    pthread_mutex_t lock;
    atomic_bool ready;
};

#define RT_DLIB(soname_, use_, table, names_)                                                                                      \
    { .soname = (soname_), .use = (use_), .names = (names_), .functions = (void **)&(table), .lock = PTHREAD_MUTEX_INITIALIZER,    \
      .count = sizeof(names_) / sizeof(names_)[0] + 0 * sizeof(char[sizeof(table) == sizeof(names_) ? 1 : -1]) }

/* Loads the library and fills its table, unless that has been done; it stays until the process ends. Any loop; suspends the first time.
 * NOT_SUPPORTED: it is not there, or lacks a function; the table is as before, and the next call tries again. */
MUST_USE int rt_dlib_load(struct co *co, struct rt_dlib *lib, struct byre_err *err);

/* The same in a thread that may block. */
MUST_USE int rt_dlib_load_blocking(struct rt_dlib *lib, struct byre_err *err);

/* Says in the file itself which libraries it may load (the note ".note.dlopen", see uapi-group.org), so that packages can name them. */
#define RT_DLIB_NOTE(name_, json)                                                                                                  \
    __attribute__((used, section(".note.dlopen"), aligned(4))) static const struct {                                               \
        uint32_t name_len, json_len, type;                                                                                         \
        char vendor[4];                                                                                                            \
        _Alignas(4) char text[sizeof(json)];                                                                                       \
    } dlib_note_##name_ = { 4, sizeof(json), 0x407c0c0a, "FDO", json }

#endif
