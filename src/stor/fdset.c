/* SPDX-License-Identifier: MIT
 *
 * fdset.c: open files that others have passed, by the numbers of their sets (FEATURES 3.023).
 *
 * Purpose      Keeps the sets; gives a store the descriptor that fits, as a duplicate of its own.
 * Owns         The descriptors of the sets; struct file_shared.
 * Invariants   I1  A duplicate shares the open file with the descriptor that it was made of, and so its locks and its flags. Stores of one open file
 *                  are in one struct file_shared: none of them gives up a lock that another one needs (file_lock.c I6), and none changes O_DIRECT
 *                  under another one.
 *              I2  Two descriptors may be the same open file, also in different sets: that is asked of the kernel, not guessed from numbers.
 *              I3  A set counts the stores that were opened from it (uses): fdset.h I1.
 *              I4  A store for reading takes a descriptor that can write only if there is none that just reads; a store for writing takes none that
 *                  only appends, since its writes would not land where they are meant to.
 *              I5  Nothing waits for a file with `mutex` or `sharing` held: the home loop takes the one, whoever opens or leaves any file of a set the
 *                  other, and a server that does not answer would stop them all. What is asked under them, the kernel knows by itself: flags, and
 *                  whether two descriptors are the same open file.
 *              I6  What makes an open file known is found out before it is looked for; a store is in `open` of its struct file_shared from before its
 *                  first lock until behind its last one, so the struct is there as long as any of them may use it.
 * Concurrency  Any thread. Both mutexes are leaves: `mutex` guards the sets, `sharing` the list of shared files and who has each of them open. Opening and
 *              leaving block on worker threads, with no mutex held but that of one shared file.
 * Failure      Nothing is taken.
 * Tests        fdset_test.c, tests/daemon/fdset_test.py
 */
#include "stor/fdset.h"

#include <fcntl.h>
#include <inttypes.h>
#include <linux/kcmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/assert.h"
#include "rt/closer.h"
#include "stor/file_priv.h"

#define PREFIX "/dev/fdset/"

struct passed { struct list_node link; int fd; char *opaque; };
struct fdset { struct list_node link; int64_t id; struct list fds; unsigned uses; };
struct waiting { struct list_node link; int fd; char key[]; };
struct fdsets {
    pthread_mutex_t mutex;
    struct list sets;                    /* the highest number first */
    pthread_mutex_t sharing;
    struct list shared;                  /* struct file_shared; guarded by sharing */
    struct list waiting;                 /* sockets that were offered and not taken */
    uint64_t offers;                     /* of sockets, so far */
    unsigned fds;
};

/* ---- life ---- */

int fdsets_new(struct fdsets **ret_s)
{
    struct fdsets *s = calloc(1, sizeof *s);
    if (!s)
        return -ENOMEM;
    pthread_mutex_init(&s->mutex, NULL);
    pthread_mutex_init(&s->sharing, NULL);
    list_init(&s->sets);
    list_init(&s->shared);
    list_init(&s->waiting);
    *ret_s = s;
    return 0;
}

/* Its descriptor, which is the caller's. */
static int passed_take(struct passed *p)
{
    int fd = p->fd;
    list_remove(&p->link);
    free(p->opaque);
    free(p);
    return fd;
}

static void set_free(struct fdset *set)
{
    list_remove(&set->link);
    free(set);
}

/* fdset.h I1 */
static void set_settle(struct fdset *set)
{
    if (list_empty(&set->fds) && !set->uses)
        set_free(set);
}

void fdsets_free(struct fdsets *s)
{
    if (!s)
        return;
    ASSERT(list_empty(&s->shared) && list_empty(&s->waiting));
    while (!list_empty(&s->sets)) {
        struct fdset *set = CONTAINER_OF(list_first(&s->sets), struct fdset, link);
        while (!list_empty(&set->fds))
            close(passed_take(CONTAINER_OF(list_first(&set->fds), struct passed, link)));
        set_free(set);
    }
    pthread_mutex_destroy(&s->sharing);
    pthread_mutex_destroy(&s->mutex);
    free(s);
}

/* ---- sets ---- */

static struct fdset *find(const struct fdsets *s, int64_t id)
{
    LIST_FOR(at, &s->sets) {
        struct fdset *set = CONTAINER_OF(at, struct fdset, link);
        if (set->id == id)
            return set;
    }
    return NULL;
}

static int64_t lowest_free(const struct fdsets *s)
{
    int64_t id = 0;
    for (struct list_node *at = list_last(&s->sets); at && CONTAINER_OF(at, struct fdset, link)->id == id; at = at->prev == &s->sets.head ? NULL : at->prev)
        id++;
    return id;
}

static struct fdset *make_set(struct fdsets *s, int64_t id)
{
    struct fdset *set = calloc(1, sizeof *set);
    struct list_node *behind = &s->sets.head;
    if (!set)
        return NULL;
    set->id = id;
    list_init(&set->fds);
    while (behind->next != &s->sets.head && CONTAINER_OF(behind->next, struct fdset, link)->id > id)
        behind = behind->next;
    list_insert_after(behind, &set->link);
    return set;
}

static int add_locked(struct fdsets *s, const struct fdset_new *what, int64_t *ret_id, struct byre_err *err)
{
    if (s->fds >= FDSETS_FDS_MAX)
        return byre_fail(err, LIMIT, "the sets hold %u descriptors, and no more", FDSETS_FDS_MAX);
    if (what->opaque && strlen(what->opaque) > FDSET_OPAQUE_MAX)
        return byre_fail(err, LIMIT, "'opaque' has at most %u bytes", FDSET_OPAQUE_MAX);
    const int64_t id = what->id ? *what->id : lowest_free(s);
    struct passed *p = calloc(1, sizeof *p);
    char *opaque = what->opaque ? strdup(what->opaque) : NULL;
    struct fdset *set = find(s, id);
    if (!set && p && (opaque || !what->opaque))
        set = make_set(s, id);
    if (!set || !p || (what->opaque && !opaque)) {
        free(p);
        free(opaque);
        return byre_fail(err, NOMEM, "no memory for a set of descriptors");
    }
    *p = (struct passed){ .fd = what->fd, .opaque = opaque };
    list_push_back(&set->fds, &p->link);
    s->fds++;
    *ret_id = id;
    return 0;
}

int fdset_add(struct fdsets *s, const struct fdset_new *what, int64_t *ret_id, struct byre_err *err)
{
    pthread_mutex_lock(&s->mutex);
    int r = what->id && *what->id < 0 ? byre_fail(err, BAD_ARGUMENT, "Parameter 'fdset-id' expects a non-negative value") : add_locked(s, what, ret_id, err);
    pthread_mutex_unlock(&s->mutex);
    return r;
}

/* Moves fd, or (negative) all, to `out`. */
static void take_out(struct fdsets *s, struct fdset *set, int fd, struct list *out)
{
    for (struct list_node *at = list_first(&set->fds), *next; at; at = next) {
        struct passed *p = CONTAINER_OF(at, struct passed, link);
        next = list_next(&set->fds, at);
        if (fd >= 0 && p->fd != fd)
            continue;
        list_remove(&p->link);
        list_push_back(out, &p->link);
        s->fds--;
    }
}

int fdset_remove(struct fdsets *s, int64_t id, int fd, struct fdset_removed *ret, struct byre_err *err)
{
    struct list out;
    list_init(&out);
    pthread_mutex_lock(&s->mutex);
    struct fdset *set = find(s, id);
    if (set)
        take_out(s, set, fd, &out);
    int r = 0;
    if (!set && fd < 0)
        r = byre_fail(err, NOT_FOUND, "File descriptor named 'fdset-id:%" PRId64 "' not found", id);
    else if (!set || (list_empty(&out) && fd >= 0))
        r = byre_fail(err, NOT_FOUND, "File descriptor named 'fdset-id:%" PRId64 ", fd:%d' not found", id, fd);
    else
        set_settle(set);
    pthread_mutex_unlock(&s->mutex);
    if (r)
        return r;
    ret->count = 0;
    while (!list_empty(&out)) {
        ASSERT(ret->count < FDSETS_FDS_MAX);
        ret->fds[ret->count++] = passed_take(CONTAINER_OF(list_first(&out), struct passed, link));
    }
    return 0;
}

void fdsets_empty(struct fdsets *s, struct rt_loop *loop)
{
    struct list out;
    list_init(&out);
    pthread_mutex_lock(&s->mutex);
    for (struct list_node *at = list_first(&s->sets), *next; at; at = next) {
        struct fdset *set = CONTAINER_OF(at, struct fdset, link);
        next = list_next(&s->sets, at);
        take_out(s, set, -1, &out);
        set_settle(set);
    }
    pthread_mutex_unlock(&s->mutex);
    while (!list_empty(&out))            /* I5 */
        rt_close_soon(loop, passed_take(CONTAINER_OF(list_first(&out), struct passed, link)));
}

void fdsets_tell(struct fdsets *s, const struct fdset_teller *t)
{
    pthread_mutex_lock(&s->mutex);
    LIST_FOR(at, &s->sets) {
        const struct fdset *set = CONTAINER_OF(at, struct fdset, link);
        t->set(t->arg, set->id);
        LIST_FOR(f, &set->fds) {
            const struct passed *p = CONTAINER_OF(f, struct passed, link);
            t->fd(t->arg, p->fd, p->opaque);
        }
    }
    pthread_mutex_unlock(&s->mutex);
}

/* ---- sockets ---- */

static struct waiting *waiting_at(const struct fdsets *s, const char *key)
{
    LIST_FOR(at, &s->waiting) {
        struct waiting *w = CONTAINER_OF(at, struct waiting, link);
        if (!strcmp(w->key, key))
            return w;
    }
    return NULL;
}

/* Its descriptor, which is the caller's; -1: there is none. */
static int take_waiting(struct fdsets *s, const char *key)
{
    pthread_mutex_lock(&s->mutex);
    struct waiting *w = waiting_at(s, key);
    int fd = w ? w->fd : -1;
    if (w)
        list_remove(&w->link);
    pthread_mutex_unlock(&s->mutex);
    free(w);
    return fd;
}

int passed_socket_offer(struct fdsets *s, const char *name, int fd, char **ret_key, struct byre_err *err)
{
    const size_t room = strlen(name) + 22;       /* '#', a number, the end */
    struct waiting *w = malloc(sizeof *w + room);
    char *key = malloc(room);
    if (!w || !key) {
        free(w);
        free(key);
        return byre_fail(err, NOMEM, "no memory for a descriptor");
    }
    pthread_mutex_lock(&s->mutex);
    snprintf(key, room, "%s#%" PRIu64, name, ++s->offers);
    memcpy(w->key, key, strlen(key) + 1);
    w->fd = fd;
    list_push_back(&s->waiting, &w->link);
    pthread_mutex_unlock(&s->mutex);
    *ret_key = key;
    return 0;
}

bool passed_socket_withdraw(struct fdsets *s, const char *key, int *ret_fd)
{
    int fd = take_waiting(s, key);
    if (fd >= 0)
        *ret_fd = fd;
    return fd >= 0;
}

int passed_socket_take(struct fdsets *s, const char *key, int *ret_fd, struct byre_err *err)
{
    int fd = take_waiting(s, key);
    if (fd < 0)
        return byre_fail(err, NOT_FOUND, "there is no connection at a descriptor '%s', or it was used already", key);
    *ret_fd = fd;
    return 0;
}

/* ---- names ---- */

bool fdset_is_name(const char *name) { return !strncmp(name, PREFIX, strlen(PREFIX)); }

static int number_of(const char *name, int64_t *ret, struct byre_err *err)
{
    const char *digits = name + strlen(PREFIX);
    int64_t v = 0;
    size_t n = strspn(digits, "0123456789");
    bool fits = n > 0 && !digits[n];
    for (size_t i = 0; fits && i < n; i++)
        fits = !__builtin_mul_overflow(v, 10, &v) && !__builtin_add_overflow(v, digits[i] - '0', &v);
    if (!fits)
        return byre_fail(err, BAD_ARGUMENT, "%s: '%s' is no number of a set of descriptors", name, digits);
    *ret = v;
    return 0;
}

/* ---- open files that several stores share (I1) ---- */

/* I2. Where the kernel tells neither way, two descriptors of one file count as the same open file: then locks may stay longer than needed, and are
 * never given up too early. */
static bool same_open_file(int a, int b)
{
    return syscall(SYS_kcmp, getpid(), getpid(), KCMP_FILE, a, b) <= 0;
}

static struct file_shared *shared_of(const struct fdsets *s, const struct stat *st, int fd)
{
    LIST_FOR(at, &s->shared) {
        struct file_shared *h = CONTAINER_OF(at, struct file_shared, link);
        if (h->dev == st->st_dev && h->ino == st->st_ino && same_open_file(fd, CONTAINER_OF(list_first(&h->open), struct file_stor, open_link)->fd))
            return h;
    }
    return NULL;
}

static struct file_shared *shared_new(struct fdsets *s, const struct stat *st)
{
    struct file_shared *h = calloc(1, sizeof *h);
    if (!h)
        return NULL;
    h->dev = st->st_dev;
    h->ino = st->st_ino;
    pthread_mutex_init(&h->mutex, NULL);
    list_init(&h->open);
    list_init(&h->stores);
    list_push_back(&s->shared, &h->link);
    return h;
}

static void set_unuse(struct fdsets *s, struct fdset *set)
{
    pthread_mutex_lock(&s->mutex);
    set->uses--;
    set_settle(set);
    pthread_mutex_unlock(&s->mutex);
}

void fdset_leave(struct file_stor *f)
{
    struct fdsets *s = f->sets;
    struct file_shared *h = f->shared;
    pthread_mutex_lock(&h->mutex);
    file_unlock_shared(f);
    list_remove(&f->shared_link);
    pthread_mutex_unlock(&h->mutex);
    pthread_mutex_lock(&s->sharing);
    list_remove(&f->open_link);          /* I6 */
    bool last = list_empty(&h->open);
    if (last)
        list_remove(&h->link);
    pthread_mutex_unlock(&s->sharing);
    if (last) {
        pthread_mutex_destroy(&h->mutex);
        free(h);
    }
    set_unuse(s, f->set);
    f->shared = NULL;
}

/* ---- opening ---- */

/* How well it fits (I4); 0: not at all. */
static unsigned fit_of(int fd, const struct stor_file_opts *o)
{
    int flags = fcntl(fd, F_GETFL), mode = flags & O_ACCMODE;
    if (flags < 0 || flags & O_PATH || mode == O_WRONLY || (!o->read_only && (mode != O_RDWR || flags & O_APPEND)))
        return 0;
    return 1 + (o->read_only == (mode == O_RDONLY) ? 2 : 0) + (o->direct == !!(flags & O_DIRECT) ? 1 : 0);
}

static const struct passed *best_of(const struct fdset *set, const struct stor_file_opts *o)
{
    const struct passed *best = NULL;
    unsigned best_fit = 0;
    LIST_FOR(at, &set->fds) {
        const struct passed *p = CONTAINER_OF(at, struct passed, link);
        unsigned fit = fit_of(p->fd, o);
        if (fit > best_fit) {
            best = p;
            best_fit = fit;
        }
    }
    return best;
}

/* I1 */
static int settle_direct(const struct open_ask *a, int fd, bool shared)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0)
        return byre_fail_code(a->err, SYSTEM, -errno, "%s: %s", a->path, strerrordesc_np(errno));
    if (!!(flags & O_DIRECT) == a->opts->direct)
        return 0;
    if (shared)
        return byre_fail(a->err, BUSY, "%s: another node uses the descriptor %s direct I/O; the set needs one more that was opened %s", a->path,
                         a->opts->direct ? "without" : "with", a->opts->direct ? "with O_DIRECT" : "without O_DIRECT");
    if (fcntl(fd, F_SETFL, flags ^ O_DIRECT) == 0)
        return 0;
    if (errno == EINVAL)
        return byre_fail(a->err, NOT_SUPPORTED, "%s: direct I/O is not possible on this file system", a->path);
    return byre_fail_code(a->err, SYSTEM, -errno, "%s: %s", a->path, strerrordesc_np(errno));
}

/* A duplicate of what fits; the set is in use from then on. `mutex` is held. */
static int duplicate(struct fdset *set, const struct open_ask *a, int *ret_fd)
{
    const struct passed *p = best_of(set, a->opts);
    if (!p)
        return byre_fail_code(a->err, SYSTEM, -EACCES, "%s: the set has no descriptor that is open for %s", a->path,
                              a->opts->read_only ? "reading" : "reading and writing anywhere");
    int fd = fcntl(p->fd, F_DUPFD_CLOEXEC, 3);
    if (fd < 0)
        return byre_fail_code(a->err, SYSTEM, -errno, "%s: cannot duplicate the descriptor: %s", a->path, strerrordesc_np(errno));
    set->uses++;
    *ret_fd = fd;
    return 0;
}

static int duplicate_of(struct fdsets *s, const struct open_ask *a, struct fdset **ret_set, int *ret_fd)
{
    int64_t id = 0;
    int r = number_of(a->path, &id, a->err);
    if (r)
        return r;
    pthread_mutex_lock(&s->mutex);
    *ret_set = find(s, id);
    r = *ret_set ? duplicate(*ret_set, a, ret_fd) : byre_fail(a->err, NOT_FOUND, "%s: there is no set %" PRId64 " of descriptors", a->path, id);
    pthread_mutex_unlock(&s->mutex);
    return r;
}

/* f has the open file fd, as others may (I1). `sharing` is held. */
static int join_locked(struct fdsets *s, const struct open_ask *a, const struct stat *st, struct file_stor *f)
{
    struct file_shared *h = shared_of(s, st, f->fd);
    int r = settle_direct(a, f->fd, h);
    if (!r && !h && !(h = shared_new(s, st)))
        r = byre_fail(a->err, NOMEM, "%s: out of memory", a->path);
    if (r)
        return r;
    f->sets = s;
    f->shared = h;
    list_push_back(&h->open, &f->open_link);
    return 0;
}

/* f becomes one of the stores of its open file. */
static int join(struct fdsets *s, const struct open_ask *a, struct file_stor *f)
{
    struct stat st;
    if (fstat(f->fd, &st))               /* I6 */
        return byre_fail_code(a->err, SYSTEM, -errno, "%s: stat: %s", a->path, strerrordesc_np(errno));
    pthread_mutex_lock(&s->sharing);
    int r = join_locked(s, a, &st, f);
    pthread_mutex_unlock(&s->sharing);
    if (r)
        return r;
    pthread_mutex_lock(&f->shared->mutex);
    list_push_back(&f->shared->stores, &f->shared_link);
    pthread_mutex_unlock(&f->shared->mutex);
    return 0;
}

int fdset_open(const struct open_ask *a, struct file_stor *f)
{
    struct fdsets *s = a->opts->passed;
    if (a->opts->exclusive)
        return byre_fail(a->err, EXISTS, "%s: create: what was passed is there already", a->path);
    int r = duplicate_of(s, a, &f->set, &f->fd);
    if (r)
        return r;
    r = join(s, a, f);
    if (r) {
        close(f->fd);
        f->fd = -1;
        set_unuse(s, f->set);
    }
    return r;
}
