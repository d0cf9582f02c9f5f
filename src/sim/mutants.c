/* SPDX-License-Identifier: MIT
 *
 * mutants.c: proves that the explorer sees (RG4): each barrier and each dependency is taken away, one at a time, and the
 * explorer must find a state that is then wrong.
 *
 * Purpose      One child process per mutant; a table of the outcome.
 * Owns         Which mutant is alive in this process; shared results.
 * Invariants   M1  A mutant is alive only while a run is recorded: the judge is always the right engine.
 *              M2  A mutant that was never reached counts as surviving.
 * Order        None.
 * Concurrency  `jobs` children at a time.
 * Failure      Exit 1 when a mutant survives that the list of known survivors does not explain.
 * Tests        it is one
 */
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/mutant.h"
#include "meta/meta.h"
#include "sim/campaign.h"
#include "sim/driver.h"

struct row { int id; const char *name, *rule, *text; };

/* Those that show only when requests meet: many workloads on a slow disk, few states of each. */
static bool is_race(int id)
{
    static const int ids[] = { MUT_FREE_SKIP_DURABLE, MUT_FREE_SKIP_GRACE, MUT_FREE_SKIP_PUNCH, MUT_FREEZE_NOTHING, MUT_FLUSH_IGNORES_DIRT, MUT_ZERO_NO_STAMP,
        MUT_DATA_FILE_PUNCH_LATE, MUT_PACK_NOT_HELD, MUT_SUB_LOCK_NARROW, MUT_UNCLEAN_USED_EARLY, MUT_SCRUB_BLIND, MUT_MOVE_NO_GRACE, MUT_MOVE_USERS, MUT_MOVED_FREED_EARLY, MUT_CLONE_NO_GRACE, MUT_CLONE_SOURCE_UNLOCKED };
    for (unsigned i = 0; i < sizeof ids / sizeof ids[0]; i++)
        if (ids[i] == id)
            return true;
    return false;
}

/* Those that live in an external data file only. */
static bool is_data(int id) { return id == MUT_DATA_FILE_LATE || id == MUT_DATA_FILE_UNFLUSHED || id == MUT_DATA_FILE_PUNCH_LATE; }

/* Those that live among subclusters; the others are looked for elsewhere. */
static bool is_sub(int id) { return id == MUT_SUB_LEFT_BEHIND || id == MUT_SUB_UNORDERED || id == MUT_SUB_LOCK_NARROW; }

/* Those that live in a compaction. */
static bool is_move(int id)
{
    static const int ids[] = { MUT_MOVE_NO_GRACE, MUT_MOVE_USERS, MUT_MOVED_FREED_EARLY, MUT_MOVE_UNORDERED, MUT_MOVE_TABLE_STALE, MUT_FOLD_SHOWS_BELOW,
        MUT_BARRIER(META_B_CUT) };
    for (unsigned i = 0; i < sizeof ids / sizeof ids[0]; i++)
        if (ids[i] == id)
            return true;
    return false;
}

/* Those that live in QED; its repair has an explorer of its own (tests/crash/qed_crash.c). */
static bool is_qed(int id)
{
    static const int ids[] = { MUT_QED_MARK_UNORDERED, MUT_QED_CLEAN_EARLY, MUT_QED_LENGTH_LATE, MUT_QED_SPARE_ZERO, MUT_QED_COPY_LATE,
        MUT_QED_REUSE_EARLY, MUT_QED_MARK_EARLY, MUT_QED_MOVE_UNORDERED, MUT_QED_MOVED_REUSED, MUT_QED_MOVE_TABLE_STALE, MUT_QED_MOVE_NO_GRACE, MUT_QED_HOLES_FORGOTTEN, MUT_QED_NAME_LATE,
        MUT_QED_EMPTY_EARLY, MUT_BARRIER(META_B_TABLES_ROOTS), MUT_NEED_TABLE_BARRIER };
    for (unsigned i = 0; i < sizeof ids / sizeof ids[0]; i++)
        if (ids[i] == id)
            return true;
    return false;
}

static bool is_lazy_amend(int id) { return id == MUT_AMEND_LAZY_AT_ONCE || id == MUT_AMEND_LAZY_LATE; }
static bool is_key(int id) { return id == MUT_KEY_SLOT_EARLY || id == MUT_KEY_ERASE_FIRST || id == MUT_KEY_NO_SPARE || id == MUT_KEY_STATE_FIRST || id == MUT_KEY_SPARE_STAYS; }
static bool is_revert(int id) { return id == MUT_SNAP_BITMAPS_LATE; }
static bool is_amend(int id)
{
    return id == MUT_AMEND_WIDTH_LATE || id == MUT_EXPAND_FREE_FIRST || id == MUT_BARRIER(META_B_EXPAND) || id == MUT_BARRIER(META_B_EXPANDED);
}
/* Those for which nothing matters but clusters that are dropped and used again: the plain images have them most. */
static bool is_plain(const struct sim_geom *g) { return !g->scrub && !g->bitmaps && !g->amend && !g->data_file && !g->compact && !g->lazy; }
static bool is_reuse(int id) { return id == MUT_FREE_SKIP_GRACE || id == MUT_FREE_SKIP_PUNCH || id == MUT_FREE_SKIP_DURABLE; }
static bool is_bitmap(int id) { return id == MUT_EXT_AT_ONCE; }
static bool is_chain(int id)
{
    return id == MUT_COMMIT_EMPTY_EARLY || id == MUT_REBASE_ZERO_BELOW || id == MUT_REBASE_DROP_EARLY || id == MUT_QED_NAME_LATE || id == MUT_QED_EMPTY_EARLY;
}

static const struct row rows[] = {
#define X(name, rules, text) { MUT_BARRIER(META_B_##name), "BARRIER_" #name, rules, "no barrier " text },
    META_BARRIER_ROWS(X)
#undef X
#define X(name, rule, text) { MUT_##name, #name, rule, text },
    BYRE_MUTANT_ROWS(X)
#undef X
};
#define ROWS (sizeof rows / sizeof rows[0])

struct outcome {
    _Atomic uint64_t reached, states, workloads;
    _Atomic int caught;
    double seconds;
    struct sim_case c;
};

static int alive;
static struct outcome *mine, *all;
static uint64_t reached_before, dull;

int byre_mutant_alive(int id)
{
    if (id != alive || !sim_recording)
        return 0;
    if (mine)
        atomic_fetch_add_explicit(&mine->reached, 1, memory_order_relaxed);
    return 1;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* ---- child ---- */

static void on_state(void *arg, const struct sim_explorer *x)
{
    (void)arg;
    (void)x;
    atomic_fetch_add_explicit(&mine->states, 1, memory_order_relaxed);
}

static uint64_t pick(const struct sim_geom *g, uint64_t i, bool race)
{
    uint64_t n = sim_alphabet(g, NULL, 0), ones = 2 * n, twos = 2 * n * n;
    if (race)
        return ones + twos + i;
    if (i % 4 == 0)
        return hash_combine(5, i) % ones;
    return i % 4 == 1 ? ones + hash_combine(6, i) % twos : ones + twos + i;
}

/* A run that has not met the mutant is looked at only now and then: the mutant may be met in recovery. */
static bool worth(void *arg)
{
    (void)arg;
    return atomic_load(&mine->reached) > reached_before || ++dull % 4 == 0;
}

/* Workloads that aim at one mutant: the seeds of the enumeration meet it too seldom. Each is tried with this many seeds, on a slow disk. */
#define AIMED_TRIES 1500u
static const struct aim { int id; const char *geom, *workload; } aims[] = {
    /* An old writer in place is still inside when its cluster has been given up, durably, and has a new owner. */
    { MUT_FREE_SKIP_GRACE, "c64k-rc64", "~ w 0 128; ~ w 256 128; ~ w 512 128; d 0 640; f; w 1024 128; w 1152 128; w 1280 128; w 1408 128; f" },
    /* Freed together, zeroed together, and in use again before anything is durable. */
    { MUT_AHEAD_UNZEROED, "c64k-rc64", "w 0 768; f; d 0 768; f; t; w 1024 8; f" },
    { MUT_AHEAD_SETTLED, "c64k-rc64", "w 0 768; f; d 0 768; f; t; w 1024 8; w 1152 8; f" },
    /* Free by the count of an earlier opening, with a cluster in use behind it. */
    { MUT_AHEAD_IN_USE, "c64k-rc64", "w 0 768; w 768 128; f; d 0 768; f; t; w 1024 8; f" },
    { MUT_AHEAD_IN_USE, "c64k-rc64", "w 0 768; w 768 128; f; d 0 768; f; o; w 1024 8; w 1152 8; w 1280 8; w 1408 8; f" },
    { MUT_CLONE_COUNT_LATE, "c64k-rc64", "w 0 128; f; l 0 128 1024; f" },
    { MUT_CLONE_FLAG_LATE, "c64k-rc64", "w 0 128; f; l 0 128 1024; f; w 0 64; f" },
    { MUT_CLONE_FLAG_LATE, "c512", "w 0 1; f; l 0 1 200; f; w 0 1; f" },
    { MUT_CLONE_KEEP_COPIED, "c64k-rc64", "w 0 128; f; l 0 128 1024; f; w 0 64; f" },
    { MUT_CLONE_UNORDERED, "c64k-rc64", "w 0 128; f; l 0 128 1024; f; l 0 128 1280; f" },
    { MUT_CLONE_FREED_EARLY, "c64k-rc64", "w 1024 128; f; l 0 128 1024; t; w 1280 128; w 1536 128; f" },
    { MUT_CLONE_SOURCE_UNLOCKED, "c64k-rc64", "w 0 128; f; ~ l 0 128 1024; d 0 128; w 0 128; f; p 0 128" },
    { MUT_CLONE_SETTLED_STAYS, "c4k-comp1", "l 64 12 320; l 320 16 344; o; w 344 16; f" },
    /* An old writer is still inside when a scrub begins. */
    { MUT_SCRUB_FORGETS_QUARANTINE, "scrub-c512", "w 0 8; f; ~ w 0 8; d 0 8; ~ i; w 100 8; f; w 120 8; f; o" },
    { MUT_CLONE_FORGETS_FLAG, "c64k-rc64", "w 0 128; l 0 128 1024; w 0 128; f; t; o; f" },
};

/* Its case number i; false: there is none. */
static bool aimed(int id, uint64_t i, struct sim_case *c)
{
    unsigned n = 0;
    for (unsigned k = 0; k < sizeof aims / sizeof aims[0]; k++)
        n += aims[k].id == id;
    if (i >= (uint64_t)n * AIMED_TRIES)
        return false;
    unsigned at = (unsigned)(i % n);
    for (unsigned k = 0; k < sizeof aims / sizeof aims[0]; k++) {
        if (aims[k].id != id || at--)
            continue;
        *c = (struct sim_case){ .seed = hash_combine(41, i) >> 16, .loops = 1 + (unsigned)(i % 3), .slow_writes = true };
        snprintf(c->geom, sizeof c->geom, "%s", aims[k].geom);
        int r = sim_workload_parse(aims[k].workload, &c->workload);
        ASSERT(r == 0);
        return true;
    }
    return false;
}

/* The outcome depends on how many workloads are tried, not on how busy the machine is. */
#define WORKLOADS_MAX 1500u
#define WORKLOADS_RACE 6000u             /* they need a request that is still inside when its space is used again */
#define WORKLOADS_KNOWN 150u             /* for those that are known to survive */

/* Case number i of the enumeration for this mutant; false: it is none for it. */
static bool enumerated(int id, unsigned geoms, uint64_t i, struct sim_case *c)
{
    const struct sim_geom *g = sim_geom_nth((unsigned)(i % geoms));
    bool race = is_race(id);
    if ((race && g->hurt) || (id == MUT_BITMAP_AUTOCLEAR_EARLY && !g->header_full) || (is_bitmap(id) && !g->bitmaps) || (is_reuse(id) && !is_plain(g)) || (is_data(id) && !g->data_file) || (is_amend(id) && !g->amend) ||
        (is_lazy_amend(id) && (!g->lazy || g->scrub)) || (id == MUT_AMEND_RAW_LATE && !g->data_raw) || (is_key(id) && !g->luks) || (is_revert(id) && !(g->bitmaps && sim_geom_snaps(g))) || (is_move(id) && !g->compact) ||
        is_chain(id) != g->chain || (is_sub(id) != g->sub && !(is_chain(id) && g->sub)) || is_qed(id) != (g->table > 0))
        return false;
    sim_case_nth(g, 99, pick(g, i / geoms, race), c);
    if (race && i % 2) {
        sim_workload_meeting(g, i, &c->workload);
        c->slow_writes = true;
    }
    return true;
}

/* Runs mine->c; does not return when something is wrong. */
static void attempt(int id, uint64_t states, uint64_t nested_one_in, double t0)
{
    struct sim_campaign k = { .per_workload = states, .states_max = 100000, .on_state = on_state, .worth = worth, .nested_one_in = nested_one_in };
    reached_before = atomic_load(&mine->reached);
    alarm(60);
    int rc = sim_case_run(&k, &mine->c);
    mine->seconds = now() - t0;
    atomic_fetch_add(&mine->workloads, 1);
    if (rc == -1 && atomic_load(&mine->reached) > reached_before) {
        atomic_store(&mine->caught, 1);
        _exit(0);
    }
    if (rc == -1)
        _exit(3);                        /* wrong without the mutant */
}

static void child(unsigned r, double until, uint64_t tries)
{
    unsigned geoms = 0;
    int id = rows[r].id;
    mine = &all[r];
    alive = id;
    while (sim_geom_nth(geoms))
        geoms++;
    double t0 = now();
    for (uint64_t i = 0; now() < until && aimed(id, i, &mine->c); i++)
        attempt(id, 4, 16, t0);          /* it shows in the run, mostly */
    for (uint64_t i = 0; now() < until && atomic_load(&mine->workloads) < tries; i++)
        if (enumerated(id, geoms, i, &mine->c))
            attempt(id, is_race(id) ? 24 : 120, i / geoms % 2 ? 3 : 16, t0);
    _exit(0);
}

/* ---- parent ---- */

static bool is_known(const char *text, const char *name)
{
    char want[80];
    snprintf(want, sizeof want, "- `%s`: ", name);
    return text && strstr(text, want);
}

static char *slurp(const char *path)
{
    FILE *f = path ? fopen(path, "r") : NULL;
    char *buf = calloc(1, 1u << 20);
    if (f && buf && !fread(buf, 1, (1u << 20) - 1, f))
        buf[0] = 0;
    if (f)
        fclose(f);
    return buf;
}

static int judge(unsigned r, const char *known)
{
    const struct outcome *o = &all[r];
    bool listed = is_known(known, rows[r].name);
    const char *verdict = o->caught ? "caught" : o->reached ? "SURVIVES" : "NOT REACHED";
    printf("%-22s %-12s %-11s %6llu states %5llu workloads %5.1f s  %s%s\n", rows[r].name, rows[r].rule, verdict, (unsigned long long)o->states,
        (unsigned long long)o->workloads, o->seconds, o->caught ? o->c.geom : listed ? "(explained)" : rows[r].text, o->caught ? ":" : "");
    if (o->caught)
        printf("    %s\n", o->c.why);
    if (o->caught && listed)
        printf("    is listed as a survivor, and is none here\n");
    fflush(stdout);
    return !o->caught && !listed;
}

/* The case that caught it is worth keeping: the right engine must pass it for ever. */
static void keep(unsigned r, const char *dir)
{
    char path[512], text[8192];
    struct sim_case c = all[r].c;
    if (!dir || !all[r].caught)
        return;
    snprintf(path, sizeof path, "%s/%s.case", dir, rows[r].name);
    sim_case_text(&c, text, sizeof text);
    FILE *f = fopen(path, "w");
    if (!f)
        return;
    fprintf(f, "# caught the mutant %s\n%s", rows[r].name, text);
    fclose(f);
}

static pid_t start(unsigned r, double seconds, bool known)
{
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0)
        child(r, now() + seconds, known ? WORKLOADS_KNOWN : is_race(rows[r].id) ? WORKLOADS_RACE : WORKLOADS_MAX);
    return pid;
}

static void ended(unsigned r, int status)
{
    struct outcome *o = &all[r];
    if (WIFSIGNALED(status)) {           /* it hung, or the engine stopped itself: seen as well */
        snprintf(o->c.why, sizeof o->c.why, "the engine %s (signal %d)", WTERMSIG(status) == SIGALRM ? "hangs" : "stopped itself", WTERMSIG(status));
        o->caught = o->reached > 0;
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) == 3) {
        printf("%s: wrong without the mutant: %s: %s\n", rows[r].name, o->c.geom, o->c.why);
        o->caught = 0;
    }
}

int sim_mutants(const struct sim_mutant_opts *o)
{
    all = mmap(NULL, ROWS * sizeof *all, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    char *known = slurp(o->known);
    pid_t pid[ROWS] = { 0 };
    unsigned running = 0, next = 0, caught = 0;
    int bad = 0;
    if (all == MAP_FAILED)
        return 2;
    while (next < ROWS || running) {
        while (next < ROWS && running < o->jobs) {
            if (o->only && strcmp(o->only, rows[next].name)) {
                next++;
                continue;
            }
            pid[next] = start(next, o->seconds ? o->seconds : 300, is_known(known, rows[next].name));
            next++;
            running++;
        }
        int status;
        pid_t p = running ? waitpid(-1, &status, 0) : -1;
        for (unsigned r = 0; p > 0 && r < ROWS; r++)
            if (pid[r] == p) {
                running--;
                ended(r, status);
                bad |= judge(r, known);
                keep(r, o->out);
                caught += all[r].caught;
            }
    }
    printf("%u of %zu mutants caught\n", caught, ROWS);
    free(known);
    return bad;
}
