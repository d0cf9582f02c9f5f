/* SPDX-License-Identifier: MIT
 *
 * pam.c: asks PAM whether a user may have a service.
 *
 * Purpose      Who somebody is has been proved by TLS, so only the account part of a service (/etc/pam.d/SERVICE) is asked, without a password.
 * Owns         the table of functions, filled at run time: as the loader's own tables it belongs to the process, and is constant once it is filled
 * Invariants   I1 whatever goes wrong means no
 *              I2 names and members come from one list
 * Concurrency  a handle for each question, as the library wants it of threads
 * Failure      NOT_SUPPORTED with the loader's own words
 * Tests        tests/daemon/tls_test.py, tests/cli/main_test.py
 */
#include <security/pam_appl.h>
#include <stdlib.h>

#include "rt/dlib.h"
#include "tls/pam.h"

#define PAM_FUNCTIONS(X) X(start) X(acct_mgmt) X(end)

static struct pam_lib {
#define MEMBER(name) __typeof__(pam_##name) *name;
    PAM_FUNCTIONS(MEMBER)
#undef MEMBER
} pam_lib;

#define NAME(name) "pam_" #name,
static const char *const names[] = { PAM_FUNCTIONS(NAME) };
#undef NAME

static struct rt_dlib pam_dlib = RT_DLIB("libpam.so.0", "rules of PAM", pam_lib, names);
RT_DLIB_NOTE(pam, "[{\"feature\":\"pam\",\"description\":\"Rules of PAM about who may connect\",\"priority\":\"suggested\",\"soname\":[\"libpam.so.0\"]}]");

int pam_lib_load(struct byre_err *err)
{
    return rt_dlib_load_blocking(&pam_dlib, err);
}

/* Nobody is here to answer questions; what modules only say is left unsaid. */
static int converse(int count, const struct pam_message **messages, struct pam_response **ret, void *arg)
{
    for (int i = 0; i < count; i++)
        if (messages[i]->msg_style != PAM_ERROR_MSG && messages[i]->msg_style != PAM_TEXT_INFO)
            return PAM_CONV_ERR;
    *ret = calloc((size_t)count + 1, sizeof **ret);      /* PAM frees it */
    return *ret ? PAM_SUCCESS : PAM_BUF_ERR;
}

bool pam_allows(const char *service, const char *user)
{
    const struct pam_conv conv = { .conv = converse };
    pam_handle_t *h = NULL;
    int r = pam_lib.start(service, user, &conv, &h);
    if (r == PAM_SUCCESS)
        r = pam_lib.acct_mgmt(h, PAM_SILENT);
    if (h)
        (void)pam_lib.end(h, r);
    return r == PAM_SUCCESS;                 /* I1 */
}
