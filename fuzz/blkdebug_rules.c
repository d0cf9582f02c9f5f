/* SPDX-License-Identifier: MIT
 *
 * blkdebug_rules.c: fuzz target for files of rules of the filter blkdebug.
 *
 * Purpose      Plays an input as such a file, and then lets every event come and every kind of request be made.
 * Input        the file
 * Invariants   I1 a file that is refused is told of by its name; rules of one that is taken answer with errors below 0, or none.
 * Tests        built with -fsanitize=fuzzer for fuzzing, with replay_main.c for `make check` (corpus/blkdebug_rules)
 */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "graph/blkdebug.h"
#include "one_run.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void use(struct co *co, struct debug_rules *all)
{
    debug_rules_begin(all);
    for (unsigned ev = 0; ev < STOR_EV_COUNT; ev++)
        debug_rules_event(co, all, (enum stor_event_kind)ev);
    for (unsigned on = 1; on; on <<= 1) {
        int r = debug_rules_apply(co, all, on, 512, 4096);
        ASSERT(r <= 0 && r != -ECANCELED);       /* I1, K9 */
    }
}

static void play(struct co *co, void *arg)
{
    const char *path = arg;
    struct debug_rules all;
    struct byre_err err = { 0 };
    json_t *o = json_pack("{s:s}", "config", path);
    ASSERT(o && !debug_rules_init(&all));
    int r = debug_rules_take(co, &all, o, &err);
    if (r)
        ASSERT(strstr(err.text, path));
    else
        use(co, &all);
    debug_rules_fini(&all);
    json_decref(o);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[40];
    int fd = memfd_create("rules", MFD_CLOEXEC);
    ASSERT(fd >= 0 && write(fd, data, size) == (ssize_t)size);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    one_run(play, path);
    close(fd);
    return 0;
}
