/* SPDX-License-Identifier: MIT
 *
 * cx_main.c: the command of the crash explorer.
 *
 *     byre-crash list
 *     byre-crash explore GEOMETRY[,GEOMETRY...] [seed=N] [runs=N] [steps=N] [states=N] [per-run=N] [sample=N] [nested=N] [fixtures=DIR] [out=DIR]
 *     byre-crash replay FILE...
 *     byre-crash trace GEOMETRY [seed=N]         the digest of a recorded run: the same seed must give the same
 *     byre-crash names                           names of the mutants (the build with mutants only)
 *     byre-crash mutants [states=N] [fixtures=DIR] [only=NAME] [limit=SECONDS of each]     (the build with mutants only)
 *
 * Exit: 0 nothing found, 1 a violation (its workload, made as small as it gets, is in out=DIR, and the line that repeats
 * it is printed), 2 usage.
 */
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/mutant.h"
#include "cx_explore.h"
#include "meta/meta.h"

static const struct cx_geometry geometries[] = {
    { .name = "c4k", .cluster = 4096, .size = 131072, .refcount_bits = 16, .version = 3, .frontier = 16384 },
    { .name = "c4k-back", .cluster = 4096, .size = 131072, .refcount_bits = 16, .version = 3, .backing = true, .frontier = 16384 },
    { .name = "c512", .cluster = 512, .size = 65536, .refcount_bits = 1, .version = 3, .frontier = 2048 },
    { .name = "c512-v2-back", .cluster = 512, .size = 65536, .refcount_bits = 16, .version = 2, .backing = true, .frontier = 2048 },
    { .name = "c64k", .cluster = 65536, .size = 196608, .refcount_bits = 16, .version = 3, .frontier = 65536 },
    { .name = "c4k-churn", .cluster = 4096, .size = 131072, .refcount_bits = 16, .version = 3, .frontier = 4096, .churn = true },
    { .name = "c4k-back-churn", .cluster = 4096, .size = 131072, .refcount_bits = 8, .version = 3, .backing = true, .frontier = 4096, .churn = true },
    { .name = "c512-resize", .cluster = 512, .size = 65536, .refcount_bits = 64, .version = 3, .frontier = 1024, .resize = true },
    { .name = "c4k-back-resize", .cluster = 4096, .size = 98304, .refcount_bits = 16, .version = 3, .backing = true, .frontier = 8192, .resize = true },
    { .name = "snapshot", .cluster = 4096, .size = 131072, .refcount_bits = 16, .version = 3, .frontier = 8192, .image = "snapshot.qcow2" },
    { .name = "compressed", .cluster = 4096, .size = 131072, .refcount_bits = 16, .version = 3, .frontier = 8192, .image = "compressed.qcow2" },
    { .name = "c512-grow", .cluster = 512, .size = 196608, .refcount_bits = 64, .version = 3, .frontier = 32768, .big = true },
    { .name = "c512-l1", .cluster = 512, .size = 32768, .refcount_bits = 16, .version = 3, .frontier = 1024, .resize = true, .big = true },
    { .name = "garbage", .cluster = 512, .size = 262144, .refcount_bits = 16, .version = 3, .frontier = 512, .image = "garbage.qcow2", .big = true },
    { .name = "bitmap", .cluster = 4096, .size = 131072, .refcount_bits = 16, .version = 3, .frontier = 8192, .image = "bitmap.qcow2" },
    { .name = "counts", .cluster = 512, .size = 2097152, .refcount_bits = 64, .version = 3, .frontier = 65536, .image = "counts.qcow2", .big = true },
    { .name = "holes", .cluster = 4096, .size = 131072, .refcount_bits = 16, .version = 3, .frontier = 4096, .image = "holes.qcow2" },
};
enum { GEOMETRIES = sizeof geometries / sizeof geometries[0] };

struct args {
    uint64_t seed, runs, steps, states, per_run, sample, nested, limit;
    const char *fixtures, *out, *only, *geometry;
};

#ifdef BYRE_MUTANTS
static int alive;
static uint64_t reached;
int byre_mutant_alive(int id)
{
    reached += id == alive;
    return id == alive;
}
#endif

static const struct cx_geometry *find(const char *name, size_t len)
{
    for (int i = 0; i < GEOMETRIES; i++)
        if (strlen(geometries[i].name) == len && strncmp(geometries[i].name, name, len) == 0)
            return &geometries[i];
    return NULL;
}

static struct cx_geometry placed(const struct cx_geometry *g, const struct args *a)
{
    struct cx_geometry p = *g;
    if (p.image[0])
        snprintf(p.image, sizeof p.image, "%s/%.200s", a->fixtures ? a->fixtures : ".", g->image);
    return p;
}

static bool parse(struct args *a, int argc, char **argv)
{
    struct { const char *name; uint64_t *n; const char **s; } rows[] = {
        { "seed=", &a->seed, NULL }, { "runs=", &a->runs, NULL }, { "steps=", &a->steps, NULL }, { "states=", &a->states, NULL }, { "per-run=", &a->per_run, NULL },
        { "sample=", &a->sample, NULL }, { "nested=", &a->nested, NULL }, { "limit=", &a->limit, NULL }, { "fixtures=", NULL, &a->fixtures }, { "out=", NULL, &a->out }, { "only=", NULL, &a->only }, { "geometry=", NULL, &a->geometry },
    };
    for (int i = 0; i < argc; i++) {
        unsigned k;
        for (k = 0; k < sizeof rows / sizeof rows[0]; k++) {
            size_t n = strlen(rows[k].name);
            if (strncmp(argv[i], rows[k].name, n))
                continue;
            if (rows[k].n)
                *rows[k].n = strtoull(argv[i] + n, NULL, 0);
            else
                *rows[k].s = argv[i] + n;
            break;
        }
        if (k == sizeof rows / sizeof rows[0]) {
            fprintf(stderr, "byre-crash: unknown argument '%s'\n", argv[i]);
            return false;
        }
    }
    return true;
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void keep(struct cx_world *w, struct cx_model *m, struct cx_work *k, const struct args *a, const struct cx_result *res)
{
    struct cx_explore_opts o = { .max_states = res->states + 2000, .nested = a->nested };
    char path[512];
    fprintf(stderr, "VIOLATION in %s, seed %" PRIu64 ", cut %" PRIu64 ": %s\n", k->g.name, k->seed, res->cut, res->why);
    cx_minimise(w, m, k, &o);
    snprintf(path, sizeof path, "%s/%s-%" PRIu64 ".crash", a->out ? a->out : "/tmp", k->g.name, k->seed);
    FILE *f = fopen(path, "w");
    if (f) {
        fprintf(f, "# %s\n", res->why);
        cx_work_print(k, f);
        fclose(f);
    }
    cx_work_print(k, stderr);
    fprintf(stderr, "repeat: byre-crash replay %s\n", path);
}

/* false: a violation was found. */
static bool explore(const struct cx_geometry *geometry, const struct args *a, bool keep_it, struct cx_result *ret)
{
    struct cx_geometry g = placed(geometry, a);
    struct cx_explore_opts o = { .max_states = a->states, .per_run = a->per_run, .sample = (unsigned)a->sample, .nested = (unsigned)a->nested,
        .scratch = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp" };
    struct cx_model *m = malloc(sizeof *m);
    struct cx_world w;
    cx_world_init(&w);
    cx_model_init(m);
    *ret = (struct cx_result){ 0 };
    double t0 = seconds();
    for (uint64_t r = 0; r < a->runs && !ret->violated && ret->states < a->states; r++) {
        struct cx_work k;
        cx_work_draw(&k, &g, a->seed + r, r % 4 == 0 ? 1 + (unsigned)(r / 4 % 3) : (unsigned)a->steps);
        cx_explore(&w, m, &k, &o, ret);
        if (ret->violated && keep_it)
            keep(&w, m, &k, a, ret);
        cx_work_fini(&k);
    }
    double t = seconds() - t0;
    if (keep_it)
        printf("geometry %s: %" PRIu64 " distinct states (%" PRIu64 " repeats, %" PRIu64 " cut again in recovery, %" PRIu64 " seen by the peer), %s, largest leak %" PRIu64
               " bytes, %.1f s, %.0f states/min\n",
               g.name, ret->states, ret->duplicates, ret->nested, ret->samples, ret->violated ? "VIOLATION" : "no violation", ret->max_leak_bytes, t, (double)ret->states / t * 60);
    fflush(stdout);
    cx_model_fini(m);
    free(m);
    cx_world_fini(&w);
    return !ret->violated;
}

static int cmd_explore(const char *list, const struct args *a)
{
    bool good = true;
    for (const char *at = list; *at;) {
        size_t n = strcspn(at, ",");
        const struct cx_geometry *g = find(at, n);
        if (!g) {
            fprintf(stderr, "byre-crash: no geometry '%.*s'\n", (int)n, at);
            return 2;
        }
        struct cx_result res;
        good &= explore(g, a, true, &res);
        at += n + (at[n] == ',');
    }
    return good ? 0 : 1;
}

static int cmd_replay(int argc, char **argv)
{
    int code = 0;
    for (int i = 0; i < argc; i++) {
        struct cx_model *m = malloc(sizeof *m);
        struct cx_world w;
        struct cx_work k;
        struct cx_result res = { 0 };
        struct cx_explore_opts o = { .nested = 16, .scratch = "/tmp" };
        FILE *f = fopen(argv[i], "r");
        if (!f || !cx_work_read(&k, f)) {
            fprintf(stderr, "byre-crash: %s is not a workload\n", argv[i]);
            return 2;
        }
        fclose(f);
        cx_world_init(&w);
        cx_model_init(m);
        cx_explore(&w, m, &k, &o, &res);
        printf("%s: %" PRIu64 " states, %s%s%s\n", argv[i], res.states, res.violated ? "VIOLATION: " : "no violation", res.violated ? res.why : "", "");
        code |= res.violated;
        cx_work_fini(&k);
        cx_model_fini(m);
        free(m);
        cx_world_fini(&w);
    }
    return code;
}

static int cmd_trace(const char *name, const struct args *a)
{
    const struct cx_geometry *g = find(name, strlen(name));
    if (!g)
        return 2;
    struct cx_geometry p = placed(g, a);
    struct cx_model *m = malloc(sizeof *m);
    struct cx_world w;
    struct cx_work k;
    cx_world_init(&w);
    cx_model_init(m);
    cx_work_draw(&k, &p, a->seed, (unsigned)a->steps);
    bool ok = cx_work_prepare(&w, m, &k) && cx_work_run(&w, m, &k);
    uint64_t flushes = 0;
    for (size_t i = 0; i < w.log_count; i++)
        flushes += w.log[i].kind == CX_FLUSH;
    printf("%016" PRIx64 " %zu operations, %" PRIu64 " barriers\n", w.trace, w.log_count, flushes);
    cx_work_fini(&k);
    cx_model_fini(m);
    free(m);
    cx_world_fini(&w);
    return ok ? 0 : 1;
}

#ifdef BYRE_MUTANTS
struct mutant { int id; char name[64]; const char *text; };

static unsigned mutant_list(struct mutant *out)
{
    static const char *const barriers[META_B_COUNT] = {
        [META_B_DATA_TABLES] = "DATA_TABLES", [META_B_TABLES_ROOTS] = "TABLES_ROOTS", [META_B_FINAL] = "FINAL", [META_B_GROW_COUNTS] = "GROW_COUNTS",
        [META_B_GROW_ROOT] = "GROW_ROOT", [META_B_SWITCH_BEFORE] = "SWITCH_BEFORE", [META_B_SWITCH_AFTER] = "SWITCH_AFTER", [META_B_HEADER] = "HEADER",
        [META_B_REPAIR] = "REPAIR",
    };
    unsigned n = 0;
    for (int b = 0; b < META_B_COUNT; b++)
        if (barriers[b]) {
            out[n].id = MUT_BARRIER(b);
            out[n].text = "the barrier is not issued";
            snprintf(out[n++].name, sizeof out[0].name, "BARRIER_%s", barriers[b]);
        }
#define X(nm, rule, txt)                                           \
    out[n].id = MUT_##nm;                                          \
    out[n].text = rule ": " txt;                                   \
    snprintf(out[n++].name, sizeof out[0].name, "%s", #nm);
    BYRE_MUTANT_ROWS(X)
#undef X
    return n;
}

/* In a child: an assertion of the engine that ends it counts as caught. */
static int one_mutant(const struct mutant *m, const struct args *a)
{
    struct cx_result res = { 0 };
    uint64_t states = 0;
    const char *where = "";
    alive = m->id;
    for (int g = 0; g < GEOMETRIES && !res.violated; g++) {
        where = geometries[g].name;
        if (a->geometry && strcmp(a->geometry, where))
            continue;
        explore(&geometries[g], a, false, &res);
        states += res.states;
    }
    printf("mutant %-24s %s after %" PRIu64 " states, reached %" PRIu64 " times%s%s%s%s\n", m->name, res.violated ? "CAUGHT" : "SURVIVED", states, reached, res.violated ? " in " : "",
           res.violated ? where : "", res.violated ? ": " : "", res.violated ? res.why : "");
    return res.violated ? 0 : 1;
}

static int cmd_mutants(const struct args *a)
{
    struct mutant list[128];
    unsigned n = mutant_list(list), survived = 0;
    for (unsigned i = 0; i < n; i++) {
        if (a->only && strcmp(a->only, list[i].name))
            continue;
        fflush(stdout);
        pid_t pid = fork();
        if (pid == 0) {
            alarm(a->limit ? (unsigned)a->limit : 3600);
            int code = one_mutant(&list[i], a);
            fflush(stdout);
            _exit(code);
        }
        int st = 0;
        if (pid < 0 || waitpid(pid, &st, 0) < 0)
            return 2;
        if (WIFSIGNALED(st) && WTERMSIG(st) != SIGALRM)
            printf("mutant %-24s CAUGHT by signal %d\n", list[i].name, WTERMSIG(st));
        else if (WIFSIGNALED(st))
            printf("mutant %-24s SURVIVED for %" PRIu64 " s\n", list[i].name, a->limit);
        survived += WIFSIGNALED(st) ? WTERMSIG(st) == SIGALRM : WEXITSTATUS(st) != 0;
    }
    return survived ? 1 : 0;
}
#endif

int main(int argc, char **argv)
{
    struct args a = { .seed = 1, .runs = 100000, .steps = 12, .states = 10000, .per_run = 2000, .sample = 256, .nested = 16 };
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc >= 2 && strcmp(argv[1], "list") == 0) {
        for (int i = 0; i < GEOMETRIES; i++)
            puts(geometries[i].name);
        return 0;
    }
    if (argc >= 3 && strcmp(argv[1], "explore") == 0 && parse(&a, argc - 3, argv + 3))
        return cmd_explore(argv[2], &a);
    if (argc >= 3 && strcmp(argv[1], "replay") == 0)
        return cmd_replay(argc - 2, argv + 2);
    if (argc >= 3 && strcmp(argv[1], "trace") == 0 && parse(&a, argc - 3, argv + 3))
        return cmd_trace(argv[2], &a);
#ifdef BYRE_MUTANTS
    if (argc >= 2 && strcmp(argv[1], "names") == 0) {
        struct mutant list[128];
        for (unsigned i = 0, n = mutant_list(list); i < n; i++)
            puts(list[i].name);
        return 0;
    }
    if (argc >= 2 && strcmp(argv[1], "mutants") == 0 && parse(&a, argc - 2, argv + 2))
        return cmd_mutants(&a);
#endif
    fputs("usage: byre-crash list | explore GEOMETRIES [key=value...] | replay FILE... | trace GEOMETRY\n", stderr);
    return 2;
}
