/* SPDX-License-Identifier: MIT
 *
 * dlib.c: shared libraries that are loaded when they are first needed.
 *
 * Purpose      Finds the functions of a table in a library, on a worker thread, or in a thread that may block: reading and relocating it
 *              takes milliseconds.
 * Owns         Nothing that ends: libraries with threads or keys of their own cannot be unloaded safely, so none is.
 * Invariants   I1  A table is filled whole or not at all, and before `ready` is true.
 *              I2  It never changes afterwards: who has called rt_dlib_load once, with success, reads it without a lock.
 * Concurrency  Any loop; `lock` makes one thread do it while others wait on their workers.
 * Failure      Nothing is kept, and the next call tries again.
 * Tests        dlib_test.c
 */
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "rt/dlib.h"
#include "rt/loop.h"

struct loading { struct rt_dlib *lib; char *why; };

static int failed(struct loading *l)
{
    const char *text = dlerror();
    l->why = strdup(text ? text : "it cannot be loaded");
    return l->why ? -ENOTSUP : -ENOMEM;
}

static int find_all(struct loading *l, void *handle, void **found)
{
    for (unsigned i = 0; i < l->lib->count; i++) {
        found[i] = dlsym(handle, l->lib->names[i]);
        if (!found[i])
            return failed(l);
    }
    return 0;
}

static int load_locked(struct loading *l)
{
    struct rt_dlib *lib = l->lib;
    if (atomic_load(&lib->ready))
        return 0;
    AUTOFREE void **found = calloc(lib->count, sizeof *found);
    if (!found)
        return -ENOMEM;
    void *handle = dlopen(lib->soname, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (!handle)
        return failed(l);
    int r = find_all(l, handle, found);
    if (r) {
        (void)dlclose(handle);                   /* forgets the handle only (RTLD_NODELETE) */
        return r;
    }
    memcpy(lib->functions, found, lib->count * sizeof *found);      /* I1 */
    atomic_store(&lib->ready, true);
    return 0;
}

static int64_t load_blocking(void *arg)
{
    struct loading *l = arg;
    pthread_mutex_lock(&l->lib->lock);
    int r = load_locked(l);
    pthread_mutex_unlock(&l->lib->lock);
    return r;
}

static int told(struct loading *l, int r, struct byre_err *err)
{
    if (r == -ENOTSUP)
        r = byre_fail(err, NOT_SUPPORTED, "%s need the library %s, which cannot be used: %s", l->lib->use, l->lib->soname, l->why);
    else if (r)
        r = byre_fail(err, NOMEM, "no memory to load the library %s", l->lib->soname);
    free(l->why);
    return r;
}

int rt_dlib_load(struct co *co, struct rt_dlib *lib, struct byre_err *err)
{
    struct loading l = { .lib = lib };
    return atomic_load(&lib->ready) ? 0 : told(&l, (int)rt_blocking(co, load_blocking, &l), err);
}

int rt_dlib_load_blocking(struct rt_dlib *lib, struct byre_err *err)
{
    struct loading l = { .lib = lib };
    return atomic_load(&lib->ready) ? 0 : told(&l, (int)load_blocking(&l), err);
}
