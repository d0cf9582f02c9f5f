/* SPDX-License-Identifier: MIT
 *
 * secret.c: memory for keys, and named passphrases.
 *
 * Purpose      One place that knows how key material is kept: locked, not dumped, not inherited, wiped.
 * Owns         The pages of secret_new; the list of a set and one reference of each secret in it.
 * Invariants   I1  A secret is never changed once it can be found.
 *              I2  No byte of a secret is in a message, an event or an argument of a child.
 * Order        None.
 * Concurrency  Any thread. The list is under a mutex that is never held over anything that waits.
 * Failure      NULL or -ENOMEM. That pages cannot be locked (a limit) is no failure: they are wiped all the same.
 * Tests        luks/luks_test.c
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/checked.h"
#include "base/list.h"
#include "fmt/secret.h"

/* In front of the memory handed out; a multiple of every alignment that a key schedule wants. */
struct area { size_t bytes; _Alignas(64) uint8_t user[]; };

void *secret_new(size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), all = round_up(bytes + sizeof(struct area), page);
    struct area *a = mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (a == MAP_FAILED)
        return NULL;
    (void)!mlock(a, all);                    /* a limit may forbid it: better unlocked than no disk */
    (void)!madvise(a, all, MADV_DONTDUMP);
    (void)!madvise(a, all, MADV_WIPEONFORK);
    a->bytes = all;
    return a->user;
}

void secret_free(void *p)
{
    if (!p)
        return;
    struct area *a = (struct area *)((uint8_t *)p - offsetof(struct area, user));
    size_t all = a->bytes;
    explicit_bzero(a, all);
    (void)!munmap(a, all);
}

void secret_wipe(void *p, size_t bytes)
{
    explicit_bzero(p, bytes);
}

int secret_random(void *p, size_t bytes)
{
    uint8_t *at = p;
    while (bytes) {
        ssize_t n = getrandom(at, bytes < 256 ? bytes : 256, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return -EIO;
        at += n;
        bytes -= (size_t)n;
    }
    return 0;
}

int secret_differs(const void *a, const void *b, size_t bytes)
{
    const volatile uint8_t *x = a, *y = b;
    uint8_t d = 0;
    for (size_t i = 0; i < bytes; i++)
        d |= x[i] ^ y[i];
    return d != 0;
}

/* ---- named secrets ---- */

struct held {
    struct secret pub;                       /* first */
    struct list_node link;
    atomic_uint refs;
    char id[SECRET_ID_MAX];
    uint8_t bytes[];
};

struct secret_set { pthread_mutex_t lock; struct list list; };

int secret_set_new(struct secret_set **ret_set)
{
    struct secret_set *set = calloc(1, sizeof *set);
    if (!set || pthread_mutex_init(&set->lock, NULL)) {
        free(set);
        return -ENOMEM;
    }
    list_init(&set->list);
    *ret_set = set;
    return 0;
}

void secret_set_free(struct secret_set *set)
{
    if (!set)
        return;
    struct list_node *l;
    while ((l = list_pop_front(&set->list)))
        secret_put(&CONTAINER_OF(l, struct held, link)->pub);
    pthread_mutex_destroy(&set->lock);
    free(set);
}

static struct held *find_locked(struct secret_set *set, const char *id)
{
    LIST_FOR(l, &set->list) {
        struct held *h = CONTAINER_OF(l, struct held, link);
        if (!strcmp(h->id, id))
            return h;
    }
    return NULL;
}

int secret_set_add(struct secret_set *set, const char *id, const void *bytes, size_t len)
{
    size_t n = strlen(id);
    if (!n || n >= SECRET_ID_MAX)
        return -EINVAL;
    if (len > SECRET_BYTES_MAX)
        return -E2BIG;
    struct held *h = secret_new(sizeof *h + len);
    if (!h)
        return -ENOMEM;
    memcpy(h->id, id, n + 1);
    if (len)
        memcpy(h->bytes, bytes, len);
    h->pub = (struct secret){ .len = len, .bytes = h->bytes };
    atomic_init(&h->refs, 1);
    pthread_mutex_lock(&set->lock);
    bool taken = find_locked(set, id);
    if (!taken)
        list_push_back(&set->list, &h->link);
    pthread_mutex_unlock(&set->lock);
    if (taken)
        secret_free(h);
    return taken ? -EEXIST : 0;
}

int secret_set_remove(struct secret_set *set, const char *id)
{
    pthread_mutex_lock(&set->lock);
    struct held *h = find_locked(set, id);
    if (h)
        list_remove(&h->link);
    pthread_mutex_unlock(&set->lock);
    if (h)
        secret_put(&h->pub);
    return h ? 0 : -ENOENT;
}

struct secret *secret_get(struct secret_set *set, const char *id)
{
    if (!set || !id)
        return NULL;
    pthread_mutex_lock(&set->lock);
    struct held *h = find_locked(set, id);
    if (h)
        atomic_fetch_add(&h->refs, 1);
    pthread_mutex_unlock(&set->lock);
    return h ? &h->pub : NULL;
}

void secret_put(struct secret *s)
{
    struct held *h = (struct held *)s;
    if (h && atomic_fetch_sub(&h->refs, 1) == 1)
        secret_free(h);
}
