/* SPDX-License-Identifier: MIT
 *
 * authz.c: who may connect.
 *
 * Purpose      One identity, a list of rules, a file of such rules that may change while it is in use, or a service of PAM.
 * Owns         rules and identities
 * Invariants   I1 what is not understood allows nobody: no rule, no file and no identity mean no
 * Concurrency  any thread; the rules of a file are under a mutex while they are read again and asked
 * Failure      a definition with a fault makes nothing
 * Tests        tls_test.c, tests/daemon/tls_test.py
 */
#include <errno.h>
#include <jansson.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "tls/authz.h"
#include "tls/pam.h"

struct authz {
    atomic_uint refs;
    char *identity;                      /* simple; else NULL */
    char *service;                       /* PAM; else NULL */
    pthread_mutex_t lock;
    struct authz_rules rules;            /* guarded by lock where they come from a file */
    char *path;                          /* file; else NULL */
    bool refresh, usable;
    struct stat seen;                    /* the file as it was read */
};

/* ---- rules ---- */

bool authz_glob(const char *p, const char *t)
{
    const char *star = NULL, *retry = NULL;
    while (*t) {
        if (*p == '*') {
            star = p++;
            retry = t;
        } else if (*p == '?' || *p == *t) {
            p++;
            t++;
        } else if (star) {               /* the last star takes one byte more; earlier ones need not change */
            p = star + 1;
            t = ++retry;
        } else {
            return false;
        }
    }
    while (*p == '*')
        p++;
    return !*p;
}

bool authz_rules_allow(const struct authz_rules *r, const char *identity)
{
    for (size_t i = 0; i < r->count; i++) {
        const struct authz_rule *one = &r->list[i];
        if (one->glob ? authz_glob(one->match, identity) : !strcmp(one->match, identity))
            return one->allow;
    }
    return r->allow;
}

void authz_rules_fini(struct authz_rules *r)
{
    for (size_t i = 0; i < r->count; i++)
        free(r->list[i].match);
    free(r->list);
    *r = (struct authz_rules){ 0 };
}

/* One of two words; v NULL: the first one. */
static int take_word(const json_t *v, const char *const words[2], bool *ret, const char *from, struct byre_err *err)
{
    const char *text = v ? json_string_value(v) : words[0];
    if (text)
        for (int i = 0; i < 2; i++)
            if (!strcmp(text, words[i])) {
                *ret = i == 1;
                return 0;
            }
    return byre_fail(err, BAD_OPTION, "%s: '%.64s' is neither '%s' nor '%s'", from, text ? text : "a value that is no string", words[0], words[1]);
}

static const char *const policy_words[2] = { "deny", "allow" };
static const char *const format_words[2] = { "exact", "glob" };

/* Names that are not known might have been meant as a limit: they are refused. */
static int check_keys(const json_t *o, const char *const *known, const char *from, struct byre_err *err)
{
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)o, key, v) {
        const char *const *k = known;
        while (*k && strcmp(*k, key))
            k++;
        if (!*k)
            return byre_fail(err, BAD_OPTION, "%s: '%.64s' is not known here", from, key);
    }
    return 0;
}

static int take_rule(const json_t *o, struct authz_rule *ret, const char *from, struct byre_err *err)
{
    static const char *const known[] = { "match", "policy", "format", NULL };
    const char *match = json_string_value(json_object_get(o, "match"));
    if (!match || !json_object_get(o, "policy"))
        return byre_fail(err, BAD_OPTION, "%s: a rule has 'match' and 'policy'", from);
    int r = check_keys(o, known, from, err);
    if (!r)
        r = take_word(json_object_get(o, "policy"), policy_words, &ret->allow, from, err);
    if (!r)
        r = take_word(json_object_get(o, "format"), format_words, &ret->glob, from, err);
    if (r)
        return r;
    ret->match = strdup(match);
    return ret->match ? 0 : byre_fail(err, NOMEM, "no memory for rules");
}

static int take_rules(const json_t *root, struct authz_rules *ret, const char *from, struct byre_err *err)
{
    static const char *const known[] = { "policy", "rules", NULL };
    const json_t *rules = json_object_get(root, "rules");
    if (!json_is_object(root) || (rules && !json_is_array(rules)))
        return byre_fail(err, BAD_OPTION, "%s: rules are an object with 'policy' and a list 'rules'", from);
    int r = check_keys(root, known, from, err);
    if (!r)
        r = take_word(json_object_get(root, "policy"), policy_words, &ret->allow, from, err);
    ret->list = calloc(json_array_size(rules) + 1, sizeof *ret->list);
    if (!r && !ret->list)
        r = byre_fail(err, NOMEM, "no memory for rules");
    for (size_t i = 0; !r && i < json_array_size(rules); i++) {
        r = take_rule(json_array_get(rules, i), &ret->list[i], from, err);
        ret->count += !r;
    }
    return r;
}

int authz_rules_parse(const char *text, size_t len, const char *from, struct authz_rules *ret, struct byre_err *err)
{
    json_error_t where;
    struct authz_rules rules = { 0 };
    json_t *root = json_loadb(text, len, JSON_REJECT_DUPLICATES, &where);
    if (!root)
        return byre_fail(err, BAD_OPTION, "%s: no JSON: %s (line %d)", from, where.text, where.line);
    int r = take_rules(root, &rules, from, err);
    json_decref(root);
    if (r)
        authz_rules_fini(&rules);
    else
        *ret = rules;
    return r;
}

/* ---- objects ---- */

static void authz_free(struct authz *a)
{
    authz_rules_fini(&a->rules);
    pthread_mutex_destroy(&a->lock);
    free(a->identity);
    free(a->service);
    free(a->path);
    free(a);
}

struct authz *authz_ref(struct authz *a)
{
    atomic_fetch_add(&a->refs, 1);
    return a;
}

void authz_unref(struct authz *a)
{
    if (a && atomic_fetch_sub(&a->refs, 1) == 1)
        authz_free(a);
}

static struct authz *make(void)
{
    struct authz *a = calloc(1, sizeof *a);
    if (a) {
        atomic_init(&a->refs, 1);
        pthread_mutex_init(&a->lock, NULL);
    }
    return a;
}

int authz_new_simple(const char *identity, struct authz **ret_a, struct byre_err *err)
{
    struct authz *a = make();
    if (a)
        a->identity = strdup(identity);
    if (a && a->identity) {
        *ret_a = a;
        return 0;
    }
    authz_unref(a);
    return byre_fail(err, NOMEM, "no memory for an object");
}

int authz_new_pam(const char *service, struct authz **ret_a, struct byre_err *err)
{
    int r = pam_lib_load(err);
    struct authz *a = r ? NULL : make();
    if (r)
        return r;
    if (a)
        a->service = strdup(service);
    if (a && a->service) {
        *ret_a = a;
        return 0;
    }
    authz_unref(a);
    return byre_fail(err, NOMEM, "no memory for an object");
}

int authz_new_list(struct authz_rules *rules, struct authz **ret_a, struct byre_err *err)
{
    struct authz *a = make();
    if (!a)
        return byre_fail(err, NOMEM, "no memory for an object");
    a->rules = *rules;
    *rules = (struct authz_rules){ 0 };
    a->usable = true;
    *ret_a = a;
    return 0;
}

/* ---- a file ---- */

static int read_rules(FILE *f, const char *path, struct authz_rules *ret, struct byre_err *err)
{
    AUTOFREE char *text = malloc(AUTHZ_FILE_MAX + 1);
    if (!text)
        return byre_fail(err, NOMEM, "no memory for rules");
    size_t len = fread(text, 1, AUTHZ_FILE_MAX + 1, f);
    if (ferror(f))
        return byre_fail(err, IO, "%s: cannot be read", path);
    if (len > AUTHZ_FILE_MAX)
        return byre_fail(err, LIMIT, "%s: a file of rules has at most %u bytes", path, AUTHZ_FILE_MAX);
    return authz_rules_parse(text, len, path, ret, err);
}

/* The rules as they are in the file now. Those before are gone either way (I1). */
static int load(struct authz *a, struct byre_err *err)
{
    authz_rules_fini(&a->rules);
    a->usable = false;
    a->seen = (struct stat){ 0 };
    FILE *f = fopen(a->path, "re");
    if (!f)
        return byre_fail_code(err, SYSTEM, -errno, "%s: cannot be opened: %s", a->path, strerror(errno));
    int r = fstat(fileno(f), &a->seen) ? byre_fail(err, IO, "%s: cannot be read", a->path) : read_rules(f, a->path, &a->rules, err);
    fclose(f);
    a->usable = !r;
    return r;
}

static bool changed(const struct authz *a)
{
    struct stat now;
    const struct stat *was = &a->seen;
    if (stat(a->path, &now))
        return true;
    return now.st_dev != was->st_dev || now.st_ino != was->st_ino || now.st_size != was->st_size || now.st_mtim.tv_sec != was->st_mtim.tv_sec ||
           now.st_mtim.tv_nsec != was->st_mtim.tv_nsec || now.st_ctim.tv_sec != was->st_ctim.tv_sec || now.st_ctim.tv_nsec != was->st_ctim.tv_nsec;
}

int authz_new_file(const char *path, bool refresh, struct authz **ret_a, struct byre_err *err)
{
    struct authz *a = make();
    AUTOFREE char *folder = path[0] == '/' ? strdup("") : getcwd(NULL, 0);      /* a daemon may leave it */
    if (!a || !folder || asprintf(&a->path, "%s%s%s", folder, folder[0] ? "/" : "", path) < 0) {
        if (a)
            a->path = NULL;
        authz_unref(a);
        return byre_fail(err, NOMEM, "no memory for an object");
    }
    a->refresh = refresh;
    int r = load(a, err);
    if (r)
        authz_unref(a);
    else
        *ret_a = a;
    return r;
}

bool authz_allows(struct authz *a, const char *identity)
{
    if (!identity)
        return false;                        /* I1 */
    if (a->identity)
        return !strcmp(a->identity, identity);
    if (a->service)
        return pam_allows(a->service, identity);
    pthread_mutex_lock(&a->lock);
    if (a->path && a->refresh && (!a->usable || changed(a)))
        (void)load(a, NULL);                 /* a failure: nobody, until it can be read */
    bool yes = a->usable && authz_rules_allow(&a->rules, identity);
    pthread_mutex_unlock(&a->lock);
    return yes;
}
