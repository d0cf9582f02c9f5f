/* SPDX-License-Identifier: MIT
 *
 * main.c: `micro` lists the pieces; `micro NAME N` runs one N times; `micro FEW MANY NAME...` runs each FEW times and MANY times, and
 * calls micro_mark around each run, where callgrind writes down what was counted so far and begins anew.
 *
 * Purpose      One program for all pieces: what it does beside them is the same for every N, and so falls out of a difference.
 * Owns         The runtime.
 * Invariants   None.
 * Order        None.
 * Concurrency  One thread.
 * Failure      An assertion ends the program.
 * Tests        tests/bench/micro_test.py
 */
#include "micro.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rt/rt_priv.h"

static const struct micro *const groups[] = { micro_rt, micro_base, micro_disk, micro_nbd };
enum { GROUPS = sizeof groups / sizeof groups[0] };

struct job { const struct micro *m; uint64_t n; bool done; };

static void job_main(struct co *co, void *arg)
{
    struct job *j = arg;
    j->m->run(co, j->n);
    j->done = true;
}

static void run(const struct micro *m, uint64_t n)
{
    struct rt *rt;
    struct job j = { m, n, false };
    OK(rt_new_sim(&echo_ops, NULL, 1, &rt));
    OK(rt_spawn(rt_loop_at(rt, 0), job_main, &j));
    while (!j.done)
        rt_loop_turn(rt_loop_at(rt, 0), 0);
    rt_free(rt);
}

static const struct micro *find(const char *name)
{
    for (unsigned i = 0; i < GROUPS; i++)
        for (const struct micro *m = groups[i]; m->name; m++)
            if (!strcmp(m->name, name))
                return m;
    fprintf(stderr, "micro: no piece is called %s\n", name);
    exit(2);
}

static void list(void)
{
    for (unsigned i = 0; i < GROUPS; i++)
        for (const struct micro *m = groups[i]; m->name; m++)
            printf("%s\t%s\n", m->name, m->what);
}

void micro_mark(void);
__attribute__((noinline)) void micro_mark(void) { __asm__ volatile(""); }

int main(int argc, char **argv)
{
    if (argc < 3)
        list();
    else if (argc == 3)
        run(find(argv[1]), strtoull(argv[2], NULL, 10));
    else
        micro_mark();
    for (int i = 3; i < argc; i++)
        for (int k = 1; k <= 2; k++) {
            run(find(argv[i]), strtoull(argv[k], NULL, 10));
            micro_mark();
        }
    return 0;
}
