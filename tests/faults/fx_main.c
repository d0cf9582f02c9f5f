/* SPDX-License-Identifier: MIT
 *
 * fx_main.c: the command.
 *
 *     byre-faults list
 *     byre-faults run [only=SCENARIO[@GEOMETRY]] [fault=KIND:HOW:ERRNO:once|forever:N] [part=I/N] [stride=N] [seed=N] [lie=write|flush] [fixtures=DIR]
 *
 * For every call of every kind that a scenario makes: that call fails, once and from then on. stride=N: every N-th only,
 * beginning elsewhere for each kind. lie=: the store says done and does nothing; the loops must notice.
 * Exit: 0 nothing found; 1 something (each is printed with the arguments that repeat it); 2 usage; 3 hung.
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fx.h"

static const struct row { unsigned kind; enum fx_how how; int error; } rows[] = {
    { CX_F_READ, FX_ERROR, EIO }, { CX_F_READ, FX_ERROR, EACCES }, { CX_F_READ, FX_SHORT, EIO }, { CX_F_READ, FX_NOTHING, EIO },
    { CX_F_WRITE, FX_ERROR, EIO }, { CX_F_WRITE, FX_ERROR, ENOSPC }, { CX_F_WRITE, FX_ERROR, EDQUOT }, { CX_F_WRITE, FX_LATE, EIO }, { CX_F_WRITE, FX_SHORT, EIO }, { CX_F_WRITE, FX_NOTHING, EIO },
    { CX_F_FLUSH, FX_ERROR, EIO }, { CX_F_FLUSH, FX_ERROR, ENOSPC },
    { CX_F_ZERO, FX_ERROR, EIO }, { CX_F_ZERO, FX_ERROR, ENOSPC }, { CX_F_ZERO, FX_ERROR, ENOTSUP }, { CX_F_ZERO, FX_LATE, EIO },
    { CX_F_TRUNCATE, FX_ERROR, EIO }, { CX_F_TRUNCATE, FX_ERROR, ENOSPC }, { CX_F_TRUNCATE, FX_LATE, EIO },
    { CX_F_DISCARD, FX_ERROR, EIO }, { CX_F_DISCARD, FX_ERROR, ENOTSUP }, { CX_F_DISCARD, FX_LATE, EIO },
    { CX_F_LENGTH, FX_ERROR, EIO }, { CX_F_OPEN, FX_ERROR, EACCES }, { CX_F_OPEN, FX_ERROR, EMFILE },
    { FX_K_ALLOC, FX_ERROR, ENOMEM },
};
enum { ROWS = sizeof rows / sizeof rows[0] };
static const char *const kinds[FX_K_KINDS] = { "read", "write", "flush", "zero", "truncate", "discard", "length", "open", "alloc" };
static const char *const hows[] = { "error", "late", "short", "nothing" };

struct args { const char *only, *fault, *fixtures; unsigned part, parts, stride, lies; uint64_t seed; };
struct totals { uint64_t runs[FX_K_KINDS], struck, cases, bad; };

/* ---- whatever ends the program says which run it was ---- */

static char current[256];
static void dying(int sig)
{
    static const char hung[] = "HUNG: ", died[] = "DIED: ";
    (void)!write(2, sig == SIGALRM ? hung : died, 6);
    (void)!write(2, current, strlen(current));
    if (sig == SIGALRM)
        _exit(3);
    signal(sig, SIG_DFL);
    raise(sig);
}

static void name_run(const struct fx_case *c, const struct fx_fault *f)
{
    snprintf(current, sizeof current, "only=%s@%s seed=%" PRIu64 " fault=%s:%s:%d:%s:%" PRIu64 "\n", c->scene->name, c->g.name, c->seed, kinds[f->kind], hows[f->how], f->error, f->forever ? "forever" : "once", f->nth);
}

static bool chosen(const struct args *a, const struct fx_case *c, const struct fx_fault *f)
{
    if (!a->fault)
        return true;
    name_run(c, f);
    const char *at = strstr(current, "fault=") + 6;
    return strncmp(at, a->fault, strlen(a->fault)) == 0 && (at[strlen(a->fault)] == '\n' || at[strlen(a->fault)] == ':');
}

/* ---- loops ---- */

static void one(struct cx_world **w, struct fx_case *c, const struct fx_fault *f, struct totals *t, struct fx_run *r)
{
    name_run(c, f);
    alarm(60);
    bool alive = fx_run_one(r, *w, c, f);
    alarm(0);
    t->runs[f->kind] += f->nth != 0;
    t->struck += r->hits != 0;
    if (r->bad) {
        t->bad++;
        printf("BAD %s    repeat: byre-faults run %s", r->why, current);
    }
    if (!alive || (*w)->node) {          /* what hangs in it cannot be taken apart */
        *w = malloc(sizeof **w);
        if (!*w)
            abort();
        cx_world_init(*w);
    }
}

static void all_faults(struct cx_world **w, struct fx_case *c, const struct args *a, struct totals *t)
{
    static struct fx_run r;
    struct fx_fault none = { .nth = 0 };
    uint64_t before = t->bad, calls[FX_K_KINDS], sum = 0;
    one(w, c, &none, t, &r);
    if (r.bad)
        return;
    memcpy(calls, r.calls, sizeof calls);
    for (unsigned i = 0; i < ROWS; i++)
        for (unsigned forever = 0; forever < 2; forever++)
            for (uint64_t n = 1 + (i * 2 + forever + t->cases) % a->stride; n <= calls[rows[i].kind]; n += a->stride) {
                struct fx_fault f = { rows[i].kind, rows[i].how, rows[i].error, forever, n };
                if (!chosen(a, c, &f))
                    continue;
                one(w, c, &f, t, &r);
                sum++;
                if (!r.hits && !r.bad) {
                    t->bad++;
                    printf("BAD the fault did not strike    repeat: byre-faults run %s", current);
                }
            }
    printf("%-16s %-14s %6" PRIu64 " runs, %" PRIu64 " bad; calls:", c->scene->name, c->g.name, sum, t->bad - before);
    for (unsigned k = 0; k < FX_K_KINDS; k++)
        printf(" %s %" PRIu64, kinds[k], calls[k]);
    putchar('\n');
}

static bool wanted(const struct args *a, const struct fx_scene *s, const struct cx_geometry *g, unsigned i)
{
    char on[80], full[160];
    snprintf(on, sizeof on, " %s ", g->name);
    snprintf(full, sizeof full, "%s@%s", s->name, g->name);
    return strstr(s->on, on) && (!a->only || strcmp(a->only, s->name) == 0 || strcmp(a->only, full) == 0) && (!a->parts || i % a->parts == a->part);
}

static int run(const struct args *a)
{
    struct totals t = { .cases = 0 };
    struct cx_world *w = malloc(sizeof *w);
    if (!w)
        abort();
    cx_world_init(w);
    unsigned i = 0;
    for (const struct fx_scene *s = fx_scenes; s->name; s++)
        for (const struct cx_geometry *g = fx_geometries; g->name[0]; g++) {
            struct cx_geometry placed = *g;
            struct fx_case c;
            char on[80];
            snprintf(on, sizeof on, " %s ", g->name);
            if (!strstr(s->on, on) || !wanted(a, s, g, i++))
                continue;
            if (g->image[0])
                snprintf(placed.image, sizeof placed.image, "%s/%.200s", a->fixtures ? a->fixtures : ".", g->image);
            snprintf(current, sizeof current, "only=%s@%s (making it)\n", s->name, g->name);
            t.cases++;
            if (!fx_case_make(&c, w, s, &placed)) {
                printf("BAD cannot be made: %s", current);
                t.bad++;
                continue;
            }
            c.lies = a->lies;
            c.seed = a->seed;
            all_faults(&w, &c, a, &t);
            fx_case_free(&c);
        }
    uint64_t sum = 0;
    printf("total: %" PRIu64 " cases,", t.cases);
    for (unsigned k = 0; k < FX_K_KINDS; k++) {
        sum += t.runs[k];
        printf(" %s %" PRIu64 ",", kinds[k], t.runs[k]);
    }
    printf(" runs %" PRIu64 ", struck %" PRIu64 ", bad %" PRIu64 "\n", sum, t.struck, t.bad);
    if (!t.bad) {
        cx_world_fini(w);
        free(w);
    }
    return t.bad || !t.cases ? 1 : 0;
}

int main(int argc, char **argv)
{
    struct args a = { .stride = 1, .seed = 7 };
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGALRM, dying);
    signal(SIGABRT, dying);
    signal(SIGSEGV, dying);
    if (argc == 2 && strcmp(argv[1], "list") == 0) {
        for (const struct fx_scene *s = fx_scenes; s->name; s++)
            printf("%s:%s\n", s->name, s->on);
        return 0;
    }
    bool good = argc >= 2 && strcmp(argv[1], "run") == 0;
    for (int i = 2; i < argc && good; i++) {
        char *v = strchr(argv[i], '=');
        good = v != NULL;
        if (good && strncmp(argv[i], "only=", 5) == 0)
            a.only = v + 1;
        else if (good && strncmp(argv[i], "fault=", 6) == 0)
            a.fault = v + 1;
        else if (good && strncmp(argv[i], "fixtures=", 9) == 0)
            a.fixtures = v + 1;
        else if (good && strncmp(argv[i], "stride=", 7) == 0)
            good = (a.stride = (unsigned)strtoul(v + 1, NULL, 10)) > 0;
        else if (good && strncmp(argv[i], "seed=", 5) == 0)
            a.seed = strtoull(v + 1, NULL, 10);
        else if (good && strcmp(argv[i], "lie=flush") == 0)
            a.lies = 1u << CX_F_FLUSH;
        else if (good && strcmp(argv[i], "lie=write") == 0)
            a.lies = 1u << CX_F_WRITE;
        else
            good = good && sscanf(argv[i], "part=%u/%u", &a.part, &a.parts) == 2;
    }
    if (good)
        return run(&a);
    fputs("usage: byre-faults list | run [only=SCENARIO[@GEOMETRY]] [fault=...] [part=I/N] [stride=N] [seed=N] [lie=write|flush] [fixtures=DIR]\n", stderr);
    return 2;
}
