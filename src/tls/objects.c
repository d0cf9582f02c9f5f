/* SPDX-License-Identifier: MIT
 *
 * objects.c: named credentials and rules (FEATURES 3.073, 3.074, 8.023).
 *
 * Purpose      From the words of command lines and control sockets to objects under ids.
 * Owns         one reference of each object
 * Invariants   I1 an object is never changed once it can be found (rules of a file answer for themselves)
 *              I2 a word that is not understood makes nothing: it might have been meant as a limit
 * Concurrency  any thread; the list is under a mutex that is never held over anything that waits
 * Failure      nothing is added
 * Tests        tls_test.c, tests/daemon/tls_test.py
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/list.h"
#include "tls/objects.h"

struct object { struct list_node link; char *id; struct tls_creds *creds; struct authz *authz; };
struct tls_set { pthread_mutex_t lock; struct list list; };

int tls_set_new(struct tls_set **ret_s)
{
    struct tls_set *s = calloc(1, sizeof *s);
    if (!s || pthread_mutex_init(&s->lock, NULL)) {
        free(s);
        return -ENOMEM;
    }
    list_init(&s->list);
    *ret_s = s;
    return 0;
}

static void object_free(struct object *o)
{
    if (!o)
        return;
    tls_creds_unref(o->creds);
    authz_unref(o->authz);
    free(o->id);
    free(o);
}
CLEANUP_DEF(struct object, object_free)

void tls_set_free(struct tls_set *s)
{
    struct list_node *n;
    if (!s)
        return;
    while ((n = list_pop_front(&s->list)))
        object_free(CONTAINER_OF(n, struct object, link));
    pthread_mutex_destroy(&s->lock);
    free(s);
}

static struct object *find_locked(struct tls_set *s, const char *id)
{
    LIST_FOR(n, &s->list) {
        struct object *o = CONTAINER_OF(n, struct object, link);
        if (!strcmp(o->id, id))
            return o;
    }
    return NULL;
}

bool tls_set_has(struct tls_set *s, const char *id)
{
    pthread_mutex_lock(&s->lock);
    bool has = find_locked(s, id);
    pthread_mutex_unlock(&s->lock);
    return has;
}

int tls_set_remove(struct tls_set *s, const char *id)
{
    pthread_mutex_lock(&s->lock);
    struct object *o = find_locked(s, id);
    if (o)
        list_remove(&o->link);
    pthread_mutex_unlock(&s->lock);
    object_free(o);
    return o ? 0 : -ENOENT;
}

int tls_set_creds(struct tls_set *s, const char *id, bool server, struct tls_creds **ret_c, struct byre_err *err)
{
    struct tls_creds *c = NULL;
    if (s) {
        pthread_mutex_lock(&s->lock);
        struct object *o = find_locked(s, id);
        c = o && o->creds ? tls_creds_ref(o->creds) : NULL;
        pthread_mutex_unlock(&s->lock);
    }
    if (!c)
        return byre_fail(err, NOT_FOUND, "there are no TLS credentials '%s'", id);
    if (tls_creds_is_server(c) != server) {
        tls_creds_unref(c);
        return byre_fail(err, BAD_ARGUMENT, "the TLS credentials '%s' are for the side that %s: this needs endpoint=%s", id, server ? "connects" : "listens", server ? "server" : "client");
    }
    *ret_c = c;
    return 0;
}

struct authz *tls_set_authz(struct tls_set *s, const char *id)
{
    if (!s)
        return NULL;
    pthread_mutex_lock(&s->lock);
    struct object *o = find_locked(s, id);
    struct authz *a = o && o->authz ? authz_ref(o->authz) : NULL;
    pthread_mutex_unlock(&s->lock);
    return a;
}

/* ---- words ---- */

static int take_bool(const struct tls_word *w, bool *ret, struct byre_err *err)
{
    static const char *const yes[] = { "on", "yes", "true", "y" }, *const no[] = { "off", "no", "false", "n" };
    for (int i = 0; i < 4; i++)
        if (!strcmp(w->value, yes[i]) || !strcmp(w->value, no[i])) {
            *ret = !strcmp(w->value, yes[i]);
            return 0;
        }
    return byre_fail(err, BAD_OPTION, "'%s' is on or off, not '%.64s'", w->key, w->value);
}

static int not_known(const struct tls_words *all, const char *key, struct byre_err *err)
{
    return byre_fail(err, BAD_OPTION, "'%s': %s has no option '%.64s'", all->id, all->type, key);
}

static int creds_word(const struct tls_words *all, const struct tls_word *w, struct tls_creds_opts *o, struct byre_err *err)
{
    bool on = true;
    int r = 0;
    if (!strcmp(w->key, "dir")) {
        o->dir = w->value;
    } else if (!strcmp(w->key, "priority")) {
        o->priority = w->value;
    } else if (!strcmp(w->key, "endpoint")) {
        o->server = !strcmp(w->value, "server");
        if (!o->server && strcmp(w->value, "client"))
            r = byre_fail(err, BAD_OPTION, "'%s': 'endpoint' is server or client, not '%.64s'", all->id, w->value);
    } else if (!strcmp(w->key, "verify-peer")) {
        r = take_bool(w, &on, err);
        o->no_verify = !on;
    } else if (!strcmp(w->key, "sanity-check") && o->kind == TLS_X509) {
        r = take_bool(w, &on, err);
        o->no_sanity_check = !on;
    } else if (!strcmp(w->key, "passwordid") && o->kind == TLS_X509) {
        if (!all->password)
            r = byre_fail(err, NO_SECRET, "'%s': there is no secret '%s' (passwordid)", all->id, w->value);
    } else if (!strcmp(w->key, "username") && o->kind == TLS_PSK) {
        o->username = w->value;
    } else {
        r = not_known(all, w->key, err);
    }
    return r;
}

static int make_creds(struct object *to, const struct tls_words *all, enum tls_kind kind, struct byre_err *err)
{
    struct tls_creds_opts o = { .kind = kind, .password = all->password };
    for (unsigned i = 0; i < all->count; i++) {
        int r = creds_word(all, &all->list[i], &o, err);
        if (r)
            return r;
    }
    return tls_creds_new(all->id, &o, &to->creds, err);
}

static int make_simple(struct object *to, const struct tls_words *all, struct byre_err *err)
{
    const char *identity = NULL;
    for (unsigned i = 0; i < all->count; i++) {
        if (strcmp(all->list[i].key, "identity"))
            return not_known(all, all->list[i].key, err);
        identity = all->list[i].value;
    }
    return identity ? authz_new_simple(identity, &to->authz, err) : byre_fail(err, BAD_OPTION, "'%s' needs 'identity'", all->id);
}

static int make_pam(struct object *to, const struct tls_words *all, struct byre_err *err)
{
    const char *service = NULL;
    for (unsigned i = 0; i < all->count; i++) {
        if (strcmp(all->list[i].key, "service"))
            return not_known(all, all->list[i].key, err);
        service = all->list[i].value;
    }
    return service && *service ? authz_new_pam(service, &to->authz, err) : byre_fail(err, BAD_OPTION, "'%s' needs 'service'", all->id);
}

static int make_file(struct object *to, const struct tls_words *all, struct byre_err *err)
{
    const char *path = NULL;
    bool refresh = true;
    for (unsigned i = 0; i < all->count; i++) {
        const struct tls_word *w = &all->list[i];
        if (!strcmp(w->key, "filename"))
            path = w->value;
        else if (strcmp(w->key, "refresh"))
            return not_known(all, w->key, err);
        else if (take_bool(w, &refresh, err))
            return -EINVAL;
    }
    return path ? authz_new_file(path, refresh, &to->authz, err) : byre_fail(err, BAD_OPTION, "'%s' needs 'filename'", all->id);
}

/* "rules.N.leaf", N in order: the leaf; NULL: something else. Makes room for rule N. */
static const char *rule_of(struct authz_rules *rules, const char *key, struct authz_rule **ret_rule)
{
    char *end;
    if (strncmp(key, "rules.", 6) || key[6] < '0' || key[6] > '9')
        return NULL;
    unsigned long n = strtoul(key + 6, &end, 10);
    if (*end != '.' || n > rules->count)
        return NULL;
    if (n == rules->count) {
        struct authz_rule *more = reallocarray(rules->list, n + 1, sizeof *more);
        if (!more)
            return NULL;
        rules->list = more;
        more[rules->count++] = (struct authz_rule){ 0 };
    }
    *ret_rule = &rules->list[n];
    return end + 1;
}

/* Words of a policy or a format: *ret is whether it is the second one. */
static int take_either(const struct tls_word *w, const char *first, const char *second, bool *ret, struct byre_err *err)
{
    *ret = !strcmp(w->value, second);
    return *ret || !strcmp(w->value, first) ? 0 : byre_fail(err, BAD_OPTION, "'%s' is %s or %s, not '%.64s'", w->key, first, second, w->value);
}

static int list_word(const struct tls_words *all, const struct tls_word *w, struct authz_rules *rules, bool has_policy[], struct byre_err *err)
{
    struct authz_rule *rule;
    if (!strcmp(w->key, "policy"))
        return take_either(w, "deny", "allow", &rules->allow, err);
    const char *leaf = rule_of(rules, w->key, &rule);
    if (leaf && !strcmp(leaf, "match")) {
        free(rule->match);
        rule->match = strdup(w->value);
        return rule->match ? 0 : byre_fail(err, NOMEM, "no memory for rules");
    }
    if (leaf && !strcmp(leaf, "format"))
        return take_either(w, "exact", "glob", &rule->glob, err);
    if (!leaf || strcmp(leaf, "policy"))
        return not_known(all, w->key, err);
    has_policy[rule - rules->list] = true;       /* there are at most as many rules as words */
    return take_either(w, "deny", "allow", &rule->allow, err);
}

static int make_list(struct object *to, const struct tls_words *all, struct byre_err *err)
{
    struct authz_rules rules = { 0 };
    AUTOFREE bool *has_policy = calloc(all->count + 1, sizeof *has_policy);
    int r = has_policy ? 0 : byre_fail(err, NOMEM, "no memory for rules");
    for (unsigned i = 0; !r && i < all->count; i++)
        r = list_word(all, &all->list[i], &rules, has_policy, err);
    for (size_t i = 0; !r && i < rules.count; i++)
        if (!rules.list[i].match || !has_policy[i])
            r = byre_fail(err, BAD_OPTION, "'%s': rule %zu has 'match' and 'policy'", all->id, i);
    if (!r)
        r = authz_new_list(&rules, &to->authz, err);
    authz_rules_fini(&rules);
    return r;
}

/* ---- types ---- */

enum type { ANON, PSK, X509, SIMPLE, LIST, LIST_FILE, LIST_FILE_TOO, PAM, TYPES };
static const char *const type_names[TYPES] = { "tls-creds-anon", "tls-creds-psk", "tls-creds-x509", "authz-simple", "authz-list", "authz-list-file", "authz-listfile", "authz-pam" };

static enum type type_of(const char *name)
{
    enum type t = ANON;
    while (t < TYPES && strcmp(type_names[t], name))
        t++;
    return t;
}

bool tls_is_type(const char *type)
{
    return type_of(type) < TYPES;
}

static int make(struct object *to, const struct tls_words *w, struct byre_err *err)
{
    switch (type_of(w->type)) {
    case ANON: return make_creds(to, w, TLS_ANON, err);
    case PSK: return make_creds(to, w, TLS_PSK, err);
    case X509: return make_creds(to, w, TLS_X509, err);
    case SIMPLE: return make_simple(to, w, err);
    case LIST: return make_list(to, w, err);
    case LIST_FILE:
    case LIST_FILE_TOO: return make_file(to, w, err);
    case PAM: return make_pam(to, w, err);
    default: return byre_fail(err, BAD_OPTION, "objects of the type '%s' are not known here", w->type);
    }
}

int tls_set_add(struct tls_set *s, const struct tls_words *w, struct byre_err *err)
{
    CLEANUP(object_freep) struct object *o = calloc(1, sizeof *o);
    if (o)
        o->id = strdup(w->id);
    int r = o && o->id ? make(o, w, err) : byre_fail(err, NOMEM, "no memory for an object");
    if (r)
        return r;
    pthread_mutex_lock(&s->lock);
    bool taken = find_locked(s, w->id);
    if (!taken)
        list_push_back(&s->list, &o->link);
    pthread_mutex_unlock(&s->lock);
    if (taken)
        return byre_fail(err, EXISTS, "there is an object '%s' already", w->id);
    (void)TAKE(o);
    return 0;
}
