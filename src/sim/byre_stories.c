/* SPDX-License-Identifier: MIT
 *
 * byre_stories.c: lives through stories, cuts the power, lets calls fail.
 *
 * Purpose     For each seed: the story is lived through; with `cuts` a sample of the states that a power cut may leave is judged; with `faults` calls fail,
 *             once, from then on, or by chance; with `same` it is lived through twice, and both traces are the same. When something is wrong, letters are left out one
 *             by one for as long as it stays wrong, and the command that repeats what is left is printed.
 * Usage       byre-sim-stories [-v] [--first] [--one-in N] [--each N] [--times N] [--without "3 7"] [--state TEXT] run|same|cuts|faults FIRST [LAST]
 *             --first: the first that is wrong is enough, and left as it is.
 * Owns        One process for each story.
 * Invariants  None.
 * Concurrency Two processes at a time.
 * Failure     Exit 1 when something is wrong, 2 when the test itself is broken.
 * Tests       tests/sim/stories_test.py
 */
#include <inttypes.h>
#include <malloc.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/assert.h"
#include "sim/story.h"

#define AT_ONCE 2
#define TIMES_DEFAULT 12u
#define SECONDS_MAX 600

enum mode { RUN, SAME, CUTS, FAULTS, MODES };
static const char *const words[MODES] = { "run", "same", "cuts", "faults" };

struct how { enum mode mode; bool loud, quiet, first_is_enough, out[STORY_LETTERS_MAX]; unsigned one_in, each, times; const char *state; };

/* Of all processes. */
struct sums { _Atomic uint64_t stories, states, again, second, faults, bitmaps, increments, parts, looks, gone, ops, wrong, told[STORY_KINDS], refused[STORY_KINDS], done[STORY_KINDS], badly[STORY_KINDS]; };
static struct sums *sums;

/* ---- one story ---- */

static struct story *begin(uint64_t seed, const struct how *h)
{
    struct story *st = calloc(1, sizeof *st);
    ASSERT(st);
    st->seed = seed;
    st->loud = h->loud;
    for (unsigned i = 0; i < STORY_LETTERS_MAX; i++)
        st->letter[i].out = h->out[i];
    if (story_new(st)) {
        fprintf(stderr, "seed %" PRIu64 ": the files cannot be made\n", seed);
        exit(2);
    }
    return st;
}

static void add_up(const struct story *st)
{
    sums->stories++;
    sums->states += st->states;
    sums->again += st->again;
    sums->second += st->second;
    sums->bitmaps += st->bitmaps;
    sums->increments += st->increments;
    sums->parts += st->parts;
    sums->looks += st->looks;
    sums->gone += st->gone;
    sums->ops += st->trace.op_count;
    for (unsigned k = 0; k < STORY_KINDS; k++) {
        sums->told[k] += st->told[k];
        sums->refused[k] += st->refused[k];
        sums->done[k] += st->done[k];
        sums->badly[k] += st->ended_badly[k];
    }
}

/* Tells what is wrong, ends the story. */
static int end(struct story *st, const struct how *h, int r)
{
    r = r || st->why[0] ? 1 : 0;
    if (r && !h->quiet) {
        fprintf(stderr, "seed %" PRIu64, st->seed);
        if (st->faults.nth)
            fprintf(stderr, ", fault %" PRIu64 " of kinds 0x%x%s", st->faults.nth, st->faults.kinds, st->faults.forever ? ", for ever" : "");
        fprintf(stderr, ": %s\n", st->why);
    }
    add_up(st);
    if (!r)
        story_free(st);                  /* after a failure coroutines may be left */
    return r;
}

static int lived_through(uint64_t seed, const struct how *h, struct hash128 *ret)
{
    struct story *st = begin(seed, h);
    int r = story_run(st);
    if (r == 0)
        r = story_judge_end(st);
    if (r == 0 && h->mode == CUTS)
        r = h->state ? story_judge_one(st, h->state) : story_judge_cuts(st, h->one_in, h->each);
    *ret = sim_trace_hash(&st->trace);
    return end(st, h, r);
}

static const struct fault { unsigned kinds; int what; bool forever; unsigned one_in; } faults[] = {
#ifdef ALLOC_FAULTS
    { SIM_C_ALLOC, -ENOMEM, false }, { SIM_C_ALLOC, -ENOMEM, false, 4 }, { SIM_C_ALLOC, -ENOMEM, false, 16 }, { SIM_C_ALLOC, -ENOMEM, false, 64 }, { SIM_C_ALLOC, -ENOMEM, false, 400 },
#else
    { SIM_C_READ, -EIO, false }, { SIM_C_WRITE, -EIO, false }, { SIM_C_WRITE | SIM_C_ZERO | SIM_C_TRUNCATE, -ENOSPC, true }, { SIM_C_FLUSH, -EIO, false },
    { SIM_C_WRITE | SIM_C_TRUNCATE, -EIO, true }, { SIM_C_ZERO | SIM_C_DISCARD | SIM_C_TRUNCATE, -EIO, false }, { SIM_C_OPEN | SIM_C_LOCK, -EACCES, false },
    { SIM_C_LENGTH | SIM_C_EXTENT, -EIO, false }, { SIM_C_FLUSH, -EIO, true }, { SIM_C_READ, -EIO, true },
    { SIM_C_WRITE | SIM_C_ZERO | SIM_C_TRUNCATE | SIM_C_PREALLOC, -ENOSPC, false, 8 }, { SIM_C_ALL & ~SIM_C_OPEN & ~SIM_C_LOCK, -ENOMEM, false, 40 },
#endif
};
#define KINDS (sizeof faults / sizeof faults[0])

/* Calls of each kind that the story makes, then some of them fail. */
static int with_faults(uint64_t seed, const struct how *h)
{
    struct prng p;
    int r = 0;
    prng_init(&p, seed ^ 0xfa);
    for (unsigned i = 0; i < h->times && r == 0; i++) {
        const struct fault *f = &faults[prng_below(&p, KINDS)];
        struct sim_faults how = { .kinds = f->kinds, .what = f->what, .forever = f->forever };
        struct story *st = begin(seed, h);
        st->faults = how;
        r = end(st, h, story_run(st));
        if (r)
            return r;
        how.nth = 1 + prng_below(&p, st->faults.calls ? st->faults.calls : 1);
        how.one_in = f->one_in;
        prng_init(&how.rng, seed + i);
        st = begin(seed, h);
        st->faults = how;
        r = story_run(st);
        sums->faults += st->faults.fired > 0;
        if (r == 0)
            r = story_judge_end(st);
        r = end(st, h, r);
    }
    return r;
}

static int story_of(uint64_t seed, const struct how *h)
{
    struct hash128 a, b;
    if (h->mode == FAULTS)
        return with_faults(seed, h);
    int r = lived_through(seed, h, &a);
    if (r || h->mode != SAME)
        return r;
    r = lived_through(seed, h, &b);
    if (r == 0 && !hash128_eq(a, b)) {
        fprintf(stderr, "seed %" PRIu64 ": the second time it goes in another way\n", seed);
        r = 1;
    }
    if (r == 0)
        printf("seed %" PRIu64 ": trace %016" PRIx64 "%016" PRIx64 "\n", seed, a.hi, a.lo);
    return r;
}

/* ---- processes ---- */

static pid_t launch(uint64_t seed, const struct how *h)
{
    fflush(NULL);
    pid_t pid = fork();
    ASSERT(pid >= 0);
    if (pid)
        return pid;
    alarm(SECONDS_MAX);
    int r = story_of(seed, h);
    fflush(NULL);
    _exit(r);
}

static bool fails(uint64_t seed, const struct how *h)
{
    int status;
    pid_t pid = launch(seed, h);
    return waitpid(pid, &status, 0) != pid || status != 0;
}

/* Letters go, as long as it stays wrong. */
static void make_small(uint64_t seed, const struct how *h)
{
    struct how small = *h;
    char text[STORY_LETTERS_MAX * 3 + 1] = "";
    small.quiet = true;
    small.loud = false;
    for (unsigned i = 0; i < STORY_LETTERS_MAX; i++) {
        bool was = small.out[i];
        small.out[i] = true;
        if (!was && !fails(seed, &small))
            small.out[i] = false;
    }
    for (unsigned i = 0; i < STORY_LETTERS_MAX; i++)
        if (small.out[i])
            snprintf(text + strlen(text), sizeof text - strlen(text), "%s%u", text[0] ? " " : "", i);
    fprintf(stderr, "to repeat: byre-sim-stories -v --one-in %u --each %u --without \"%s\" %s %" PRIu64 "\n", h->one_in, h->each, text, words[h->mode], seed);
    small.quiet = false;
    (void)fails(seed, &small);
}

static void ended(uint64_t seed, int status, const struct how *h)
{
    if (status == 0)
        return;
    sums->wrong++;
    if (WIFSIGNALED(status))
        fprintf(stderr, "seed %" PRIu64 ": ended by signal %d\n", seed, WTERMSIG(status));
    if (sums->wrong <= 2 && !h->loud && !h->state && !h->first_is_enough)
        make_small(seed, h);
}

static void all_seeds(uint64_t first, uint64_t last, const struct how *h)
{
    struct { pid_t pid; uint64_t seed; int status; bool over; } run[AT_ONCE] = { 0 };
    for (uint64_t next = first, left = last - first + 1; left && sums->wrong < (h->first_is_enough ? 1u : 6u);) {
        for (unsigned i = 0; i < AT_ONCE; i++)
            if (!run[i].pid && next <= last) {
                run[i].pid = launch(next, h);
                run[i].seed = next++;
            }
        int status;
        pid_t pid = wait(&status);
        for (unsigned i = 0; i < AT_ONCE; i++)
            if (run[i].pid == pid) {
                run[i].pid = 0;
                left--;
                for (unsigned k = 0; status && k < AT_ONCE; k++)         /* make_small waits for children of its own */
                    if (run[k].pid && waitpid(run[k].pid, &run[k].status, 0) == run[k].pid) {
                        run[k].pid = 0;
                        left--;
                        ended(run[k].seed, run[k].status, h);
                    }
                ended(run[i].seed, status, h);
            }
    }
}

static void tell_sums(void)
{
    for (unsigned k = 0; k < STORY_KINDS; k++)
        printf("%-12s %6" PRIu64 " told, %6" PRIu64 " refused, %6" PRIu64 " done, %6" PRIu64 " ended badly\n", story_word(k), sums->told[k], sums->refused[k], sums->done[k], sums->badly[k]);
    printf("%" PRIu64 " bitmaps compared, %" PRIu64 " increments, %" PRIu64 " copies of a part, %" PRIu64 " second power cuts\n", sums->bitmaps, sums->increments, sums->parts,
           sums->second);
    printf("%" PRIu64 " sectors of disks of one moment, %" PRIu64 " mirrors of a part that went over\n", sums->looks, sums->gone);
    printf("%" PRIu64 " stories, %" PRIu64 " operations, %" PRIu64 " states, %" PRIu64 " done again, %" PRIu64 " faults met, %" PRIu64 " wrong\n", sums->stories, sums->ops, sums->states,
           sums->again, sums->faults, sums->wrong);
}

static void leave_out(struct how *h, const char *text)
{
    for (char *e; *text; text = e + strspn(e, " ")) {
        unsigned long i = strtoul(text, &e, 10);
        if (e == text)
            break;
        if (i < STORY_LETTERS_MAX)
            h->out[i] = true;
    }
}

int main(int argc, char **argv)
{
    struct how h = { .mode = MODES, .one_in = 24, .each = 6, .times = TIMES_DEFAULT };
    int at = 1;
    for (; at < argc && argv[at][0] == '-'; at++) {
        if (!strcmp(argv[at], "-v"))
            h.loud = true;
        else if (!strcmp(argv[at], "--first"))
            h.first_is_enough = true;
        else if (at + 1 < argc && !strcmp(argv[at], "--one-in"))
            h.one_in = (unsigned)strtoul(argv[++at], NULL, 0);
        else if (at + 1 < argc && !strcmp(argv[at], "--each"))
            h.each = (unsigned)strtoul(argv[++at], NULL, 0);
        else if (at + 1 < argc && !strcmp(argv[at], "--times"))
            h.times = (unsigned)strtoul(argv[++at], NULL, 0);
        else if (at + 1 < argc && !strcmp(argv[at], "--without"))
            leave_out(&h, argv[++at]);
        else if (at + 1 < argc && !strcmp(argv[at], "--state"))
            h.state = argv[++at];
        else
            break;
    }
    for (unsigned i = 0; i < MODES && at < argc; i++)
        if (!strcmp(argv[at], words[i]))
            h.mode = (enum mode)i;
    if (h.mode == MODES || at + 2 > argc - 0 || at + 1 >= argc || !h.one_in) {
        fprintf(stderr, "usage: byre-sim-stories [-v] [--first] [--one-in N] [--each N] [--times N] [--without \"3 7\"] [--state TEXT] run|same|cuts|faults FIRST [LAST]\n");
        return 2;
    }
    uint64_t first = strtoull(argv[at + 1], NULL, 0), last = at + 2 < argc ? strtoull(argv[at + 2], NULL, 0) : first;
    mallopt(M_MMAP_THRESHOLD, 1 << 30);      /* the same memory again and again */
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    sums = mmap(NULL, sizeof *sums, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ASSERT(sums != MAP_FAILED);
    all_seeds(first, last, &h);
    tell_sums();
    return sums->wrong ? 1 : 0;
}
