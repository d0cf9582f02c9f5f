/* SPDX-License-Identifier: MIT
 *
 * gnutls.c: loads GnuTLS.
 *
 * Purpose      A table of its functions, filled when credentials are made.
 * Owns         the table, filled at run time: as the loader's own tables it belongs to the process, and is constant once it is filled
 * Invariants   I1 names and members come from one list
 * Concurrency  see rt/dlib.h
 * Failure      NOT_SUPPORTED with the loader's own words, and the table as before
 * Tests        tls_test.c, tests/cli/main_test.py
 */
#include "rt/dlib.h"
#include "tls/gnutls.h"

struct gnutls_lib gnutls_lib;

#define NAME(name) "gnutls_" #name,
static const char *const names[] = { TLS_FUNCTIONS(NAME) };
#undef NAME

static struct rt_dlib tls_dlib = RT_DLIB("libgnutls.so.30", "TLS credentials", gnutls_lib, names);
RT_DLIB_NOTE(gnutls, "[{\"feature\":\"tls\",\"description\":\"TLS of NBD servers and clients\",\"priority\":\"recommended\",\"soname\":[\"libgnutls.so.30\"]}]");

int gnutls_lib_load(struct byre_err *err)
{
    return rt_dlib_load_blocking(&tls_dlib, err);
}
