/* SPDX-License-Identifier: MIT
 *
 * byre_sim.c: the driver of the crash explorer.
 *
 *   byre-sim explore [--geometry NAME] [--seed N] [--states N] [--per-workload N] [--nested N] [--seconds N] [--jobs N] [--workload TEXT] [--out DIR]
 *   byre-sim explore --long            all floors, again and again with other seeds, for SOAK_SECONDS (600)
 *   byre-sim --replay [--verbose] FILE...   repeats stored cases, each with its neighbourhood
 *   byre-sim mutants [--seconds N]     (only in the build with mutants)
 *   byre-sim geometries
 *
 * Purpose      Spreads workloads over processes, prints totals and floors, stores what it finds.
 * Owns         Shared memory for counters, the processes it starts.
 * Invariants   I1  A worker that dies or hangs is a finding like any other: what it was doing lies in shared memory.
 * Order        None.
 * Concurrency  One process per job.
 * Failure      Exit 1: something was found, or a floor was not reached. Exit 2: usage.
 * Tests        it is one
 */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/assert.h"
#include "sim/campaign.h"
#include "sim/driver.h"

#define GEOMS_MAX 16u
#define JOBS_MAX 16u
#define HANG_SECONDS 60

struct shared {
    _Atomic uint64_t next;                         /* workload to take next */
    _Atomic uint64_t beat[JOBS_MAX];               /* grows with every state */
    _Atomic uint64_t workloads, made, states, nested, peers, leaks_max, bound;
    _Atomic int found;
    _Atomic int lock;
    struct sim_case current[JOBS_MAX], finding;
};

struct options {
    const char *geometry, *workload, *out;
    uint64_t seed, states, per_workload, nested;         /* nested: one state in so many is cut short once more; 0: the usual */
    unsigned seconds, jobs;
    bool floors, lasting;                /* lasting: --long */
};

static struct shared *sh;
static unsigned my_job;
static const struct sim_explorer *my_explorer;
static char peer_dir[64];
static bool verbose;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* ---- worker ---- */

static void on_state(void *arg, const struct sim_explorer *x)
{
    (void)arg;
    my_explorer = x;
    atomic_fetch_add_explicit(&sh->beat[my_job], 1, memory_order_relaxed);
}

/* I1 */
static void on_death(int sig)
{
    struct sim_case *c = &sh->current[my_job];
    if (my_explorer)
        sim_state_text(my_explorer, c->state, sizeof c->state);
    snprintf(c->why, sizeof c->why, sig == SIGUSR1 ? "no progress for %d seconds" : "the engine stopped itself (signal %d)", sig == SIGUSR1 ? HANG_SECONDS : sig);
    _exit(70);
}

static void report(const struct sim_case *c)
{
    int was = 0;
    if (atomic_compare_exchange_strong(&sh->found, &was, 1))
        sh->finding = *c;
}

static void add_tally(struct sim_tally *t)
{
    atomic_fetch_add(&sh->workloads, t->workloads);
    atomic_fetch_add(&sh->made, t->made);
    atomic_fetch_add(&sh->states, t->states);
    atomic_fetch_add(&sh->nested, t->nested);
    atomic_fetch_add(&sh->peers, t->peers);
    if (t->leaks_max > atomic_load(&sh->leaks_max)) {
        atomic_store(&sh->leaks_max, t->leaks_max);
        atomic_store(&sh->bound, t->bound_at_max);
    }
    *t = (struct sim_tally){ 0 };
}

/* All workloads of length 1 first, then the others at random places of the list. */
static uint64_t pick(const struct sim_geom *g, uint64_t seed, uint64_t i)
{
    uint64_t n = sim_alphabet(g, NULL, 0), ones = 2 * n, twos = 2 * n * n;
    if (i < ones)
        return i;
    return i % 2 ? ones + hash_combine(seed, i) % twos : ones + twos + hash_combine(seed, i) % 1000000;
}

static void work(const struct options *o, const struct sim_geom *g, struct sim_seen *checked, struct sim_seen *distinct, double until)
{
    struct sim_campaign k = { .checked = checked, .distinct = distinct, .per_workload = o->per_workload, .states_max = 400000,
        .peer_dir = peer_dir[0] ? peer_dir : NULL, .on_state = on_state, .nested_one_in = o->nested };
    while (!atomic_load(&sh->found) && sim_seen_count(distinct) < o->states && now() < until) {
        struct sim_case *c = &sh->current[my_job];
        uint64_t i = atomic_fetch_add(&sh->next, 1);
        sim_case_nth(g, o->seed, pick(g, o->seed, i), c);
        if (o->workload && (i > 0 || sim_workload_parse(o->workload, &c->workload) < 0))
            break;
        my_explorer = NULL;
        atomic_fetch_add(&sh->beat[my_job], 1);
        int r = sim_case_run(&k, c);
        my_explorer = NULL;
        add_tally(&k.tally);
        if (r < 0)
            report(c);
    }
}

static pid_t start(const struct options *o, const struct sim_geom *g, unsigned job, struct sim_seen *checked, struct sim_seen *distinct, double until)
{
    fflush(NULL);
    pid_t pid = fork();
    if (pid)
        return pid;
    my_job = job;
    int sigs[] = { SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGUSR1 };
    static char stack[65536];            /* a coroutine's stack may be full */
    stack_t ss = { .ss_sp = stack, .ss_size = sizeof stack };
    sigaltstack(&ss, NULL);
    struct sigaction sa = { .sa_handler = on_death, .sa_flags = SA_ONSTACK };
    for (unsigned i = 0; i < sizeof sigs / sizeof sigs[0]; i++)
        sigaction(sigs[i], &sa, NULL);
    if (peer_dir[0]) {
        size_t at = strlen(peer_dir);
        snprintf(peer_dir + at, sizeof peer_dir - at, "/%u", job);
        mkdir(peer_dir, 0700);
    }
    work(o, g, checked, distinct, until);
    _exit(0);
}

/* ---- parent ---- */

static void watch(const pid_t *pid, unsigned jobs)
{
    uint64_t last[JOBS_MAX] = { 0 };
    double since[JOBS_MAX];
    unsigned left = jobs;
    bool over[JOBS_MAX] = { false };
    for (unsigned i = 0; i < jobs; i++)
        since[i] = now();
    while (left) {
        usleep(20000);
        for (unsigned i = 0; i < jobs; i++) {
            int status;
            if (over[i])
                continue;
            if (waitpid(pid[i], &status, WNOHANG) == pid[i]) {
                over[i] = true;
                left--;
                if (!WIFEXITED(status) || WEXITSTATUS(status)) {
                    if (!WIFEXITED(status))
                        snprintf(sh->current[i].why, sizeof sh->current[i].why, "the process died (signal %d)", WTERMSIG(status));
                    report(&sh->current[i]);
                }
                continue;
            }
            uint64_t beat = atomic_load(&sh->beat[i]);
            if (beat != last[i]) {
                last[i] = beat;
                since[i] = now();
            } else if (now() - since[i] > HANG_SECONDS) {
                kill(pid[i], SIGUSR1);
                since[i] = now();
            }
        }
    }
}

static void store(const struct options *o, struct sim_case *c)
{
    char path[512], text[8192];
    struct sim_campaign k = { 0 };
    printf("FOUND %s: %s\n", c->geom, c->why);
    sim_case_text(c, text, sizeof text);
    fputs(text, stdout);
    fflush(stdout);
    sim_case_minimise(&k, c, 60);
    sim_case_text(c, text, sizeof text);
    snprintf(path, sizeof path, "%s/%s-%08llx.case", o->out ? o->out : ".", c->geom, (unsigned long long)(hash_buf(text, strlen(text), 0).lo >> 32));
    FILE *f = fopen(path, "w");
    if (f) {
        fputs(text, f);
        fclose(f);
    }
    printf("made small:\n%sto repeat: byre-sim --replay %s\n", text, path);
}

/* A run of all tests of the project takes a part of each floor: percent in BYRE_SIM_FLOORS. */
static unsigned floors_percent(void)
{
    const char *s = getenv("BYRE_SIM_FLOORS");
    unsigned n = s ? (unsigned)strtoul(s, NULL, 10) : 100;
    return n >= 1 && n <= 100 ? n : 100;
}

struct sums { uint64_t states, distinct; double seconds; };

static int explore_geom(const struct options *o, const struct sim_geom *g, struct sums *sums)
{
    struct options mine = *o;
    struct sim_seen *checked = sim_seen_new(22), *distinct = sim_seen_new(22);
    pid_t pid[JOBS_MAX];
    double t0 = now();
    memset(sh, 0, sizeof *sh);
    if (o->floors)
        mine.states = g->floor * floors_percent() / 100;
    for (unsigned i = 0; i < o->jobs; i++)
        pid[i] = start(&mine, g, i, checked, distinct, t0 + o->seconds);
    watch(pid, o->jobs);
    double took = now() - t0;
    uint64_t n = sim_seen_count(distinct);
    printf("%-14s %6llu workloads, %9llu states made, %7llu verified (%llu distinct contents), %6llu nested, %4llu by the peer, leaks <= %llu of %llu, %.1f s, %.0f/min\n",
        g->name, (unsigned long long)sh->workloads, (unsigned long long)sh->made, (unsigned long long)sh->states, (unsigned long long)n,
        (unsigned long long)sh->nested, (unsigned long long)sh->peers, (unsigned long long)sh->leaks_max, (unsigned long long)sh->bound, took, (double)sh->states / took * 60);
    fflush(stdout);
    sums->states += sh->states;
    sums->distinct += n;
    sums->seconds += took;
    sim_seen_free(checked);
    sim_seen_free(distinct);
    if (sh->found) {
        struct sim_case c = sh->finding;
        store(o, &c);
        return 1;
    }
    if (o->floors && n < mine.states) {
        printf("%s: %llu distinct states, the floor is %llu\n", g->name, (unsigned long long)n, (unsigned long long)mine.states);
        return 1;
    }
    return 0;
}

static int explore_all(const struct options *o)
{
    struct sums sums = { 0 };
    int r = 0;
    unsigned geoms = 0;
    for (unsigned i = 0; sim_geom_nth(i); i++) {
        const struct sim_geom *g = sim_geom_nth(i);
        if (o->geometry && strcmp(o->geometry, g->name))
            continue;
        geoms++;
        r |= explore_geom(o, g, &sums);
    }
    printf("total: %u geometries, %llu states verified, %llu distinct, %.1f s, %.0f distinct states per minute with %u processes\n", geoms,
        (unsigned long long)sums.states, (unsigned long long)sums.distinct, sums.seconds, (double)sums.distinct / sums.seconds * 60, o->jobs);
    return r;
}

/* With --long: rounds, each with seeds of its own, at least one. */
static int explore(const struct options *o)
{
    struct options round = *o;
    const char *s = getenv("SOAK_SECONDS");
    double until = now() + (s && *s ? strtod(s, NULL) : 600);
    if (!o->lasting)
        return explore_all(o);
    round.floors = true;
    round.seed = (uint64_t)time(NULL);
    int r;
    do {
        printf("seed %llu\n", (unsigned long long)round.seed);
        r = explore_all(&round);
        round.seed++;
    } while (r == 0 && now() < until);
    return r;
}

/* ---- replay ---- */

static char *slurp(const char *path)
{
    FILE *f = fopen(path, "r");
    char *buf = calloc(1, 65536);
    if (!f || !buf || !fread(buf, 1, 65535, f)) {
        fprintf(stderr, "%s: cannot be read\n", path);
        exit(2);
    }
    fclose(f);
    return buf;
}

/* The stored state, if the trace still has it, and all states of the workload. */
static int replay(const char *path)
{
    struct sim_case c;
    char *text = slurp(path);
    int r = sim_case_parse(text, &c);
    free(text);
    if (r < 0) {
        fprintf(stderr, "%s: is no case\n", path);
        return 2;
    }
    struct sim_campaign k = { .peer_dir = peer_dir[0] ? peer_dir : NULL, .verbose = verbose };
    char was[400];
    snprintf(was, sizeof was, "%s", c.why);
    bool stored = c.state[0];
    r = stored ? sim_case_run(&k, &c) : 0;
    if (r == 0 || r == -ENOENT) {
        c.state[0] = 0;
        k.states_max = 30000;
        struct sim_campaign all = { .states_max = 30000, .checked = sim_seen_new(18), .peer_dir = k.peer_dir, .verbose = verbose && !stored };
        r = sim_case_run(&all, &c);
        k.tally.states += all.tally.states;
        sim_seen_free(all.checked);
    }
    printf("%s %s: %llu states%s%s\n", r < 0 ? "FAIL" : "ok", path, (unsigned long long)k.tally.states, r < 0 ? ": " : "", r < 0 ? c.why : "");
    if (r < 0)
        printf("  state %s\n", c.state);
    return r < 0;
}

/* ---- options ---- */

static int usage(void)
{
    fputs("byre-sim explore [--geometry NAME] [--seed N] [--states N | --floors | --long] [--per-workload N] [--nested N] [--seconds N] [--jobs N] [--workload TEXT] [--out DIR]\n"
          "byre-sim --replay [--verbose] FILE...\n"
          "byre-sim mutants [--seconds N] [--mutant NAME] [--known FILE] [--out DIR]\n"
          "byre-sim geometries\n", stderr);
    return 2;
}

static bool peer_there(void)
{
    return system("qemu-img --version >/dev/null 2>&1") == 0;
}

static void make_peer_dir(void)
{
    snprintf(peer_dir, sizeof peer_dir, "/dev/shm/byre-sim-XXXXXX");
    if (!peer_there() || !mkdtemp(peer_dir))
        peer_dir[0] = 0;
    if (!peer_dir[0])
        fputs("note: no qemu-img or no /dev/shm: the peer is not asked\n", stderr);
    if (!peer_dir[0] && getenv("CI") && !strcmp(getenv("CI"), "true"))
        exit(1);
}

static void remove_peer_dir(void)
{
    char cmd[128];
    if (!peer_dir[0])
        return;
    snprintf(cmd, sizeof cmd, "rm -rf '%s'", peer_dir);
    if (system(cmd) != 0)
        fputs("note: the peer's folder could not be removed\n", stderr);
}

static int parse(int argc, char **argv, struct options *o, struct sim_mutant_opts *mo, bool *ret_replay)
{
    static const struct option longs[] = {
        { "geometry", 1, NULL, 'g' }, { "seed", 1, NULL, 's' }, { "states", 1, NULL, 'n' }, { "per-workload", 1, NULL, 'p' }, { "nested", 1, NULL, 'e' },
        { "seconds", 1, NULL, 't' }, { "jobs", 1, NULL, 'j' }, { "workload", 1, NULL, 'w' }, { "out", 1, NULL, 'o' },
        { "floors", 0, NULL, 'f' }, { "long", 0, NULL, 'l' }, { "replay", 0, NULL, 'r' }, { "mutant", 1, NULL, 'm' }, { "known", 1, NULL, 'k' }, { "verbose", 0, NULL, 'v' }, { 0 } };
    for (int c; (c = getopt_long(argc, argv, "", longs, NULL)) != -1;) {
        switch (c) {
        case 'g': o->geometry = optarg; break;
        case 's': o->seed = strtoull(optarg, NULL, 0); break;
        case 'n': o->states = strtoull(optarg, NULL, 0); break;
        case 'e': o->nested = strtoull(optarg, NULL, 0); break;
        case 'p': o->per_workload = strtoull(optarg, NULL, 0); break;
        case 't': mo->seconds = o->seconds = (unsigned)strtoul(optarg, NULL, 10); break;
        case 'j': mo->jobs = o->jobs = (unsigned)strtoul(optarg, NULL, 10); break;
        case 'w': o->workload = optarg; break;
        case 'o': mo->out = o->out = optarg; break;
        case 'f': o->floors = true; break;
        case 'l': o->lasting = true; break;
        case 'r': *ret_replay = true; break;
        case 'm': mo->only = optarg; break;
        case 'v': verbose = true; break;
        case 'k': mo->known = optarg; break;
        default: return -1;
        }
    }
    return o->jobs >= 1 && o->jobs <= JOBS_MAX && (!o->geometry || sim_geom_find(o->geometry)) ? 0 : -1;
}

int main(int argc, char **argv)
{
    struct options o = { .seed = 1, .states = UINT64_MAX, .per_workload = 100, .seconds = 3600, .jobs = 2 };
    struct sim_mutant_opts mo = { .jobs = 2 };
    bool again = false;
    int r = 0;
    if (parse(argc, argv, &o, &mo, &again) < 0 || (!again && optind != argc - 1) || (again && optind == argc))
        return usage();
    sh = mmap(NULL, sizeof *sh, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (sh == MAP_FAILED)
        return 2;
    if (!again && !strcmp(argv[optind], "geometries")) {
        for (unsigned i = 0; sim_geom_nth(i); i++)
            puts(sim_geom_nth(i)->name);
        return 0;
    }
    if (!again && !strcmp(argv[optind], "mutants"))
        return sim_mutants(&mo);
    if (!again && strcmp(argv[optind], "explore"))
        return usage();
    make_peer_dir();
    if (again)
        for (int i = optind; i < argc; i++)
            r |= replay(argv[i]);
    else
        r = explore(&o);
    remove_peer_dir();
    return r;
}
