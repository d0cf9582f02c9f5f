/* SPDX-License-Identifier: MIT
 *
 * nbd_lib.c: loads libnbd when it is first needed.
 *
 * Purpose      libnbd brings libraries of TLS and XML with it, some twenty in all. A start without them is more than twice as quick, so
 *              they wait for the first disk of an NBD server.
 * Owns         The table of functions, the one object of the library that is filled at run time: as the loader's own tables it belongs to
 *              the process, and is constant once it is filled.
 * Invariants   I1  Names and members come from one list, so they cannot differ.
 * Order        None.
 * Concurrency  See rt/dlib.h.
 * Failure      A sentence that names the library.
 * Tests        nbd_lib_test.c, tests/cli/main_test.py
 */
#include "rt/dlib.h"
#include "stor/nbd_lib.h"

struct nbd_lib nbd_lib;

#define NAME(f) "nbd_" #f,
static const char *const names[] = { NBD_LIB_FUNCTIONS(NAME) };
#undef NAME

static struct rt_dlib nbd_dlib = RT_DLIB("libnbd.so.0", "disks of NBD servers", nbd_lib, names);
RT_DLIB_NOTE(nbd, "[{\"feature\":\"nbd\",\"description\":\"Disks of NBD servers\",\"priority\":\"recommended\",\"soname\":[\"libnbd.so.0\"]}]");

int nbd_lib_load(struct co *co, struct byre_err *err)
{
    return rt_dlib_load(co, &nbd_dlib, err);
}
