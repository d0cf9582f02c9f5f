/* SPDX-License-Identifier: MIT
 *
 * peer.c: asks the peer's programs about a crash state.
 *
 * Purpose      `qemu-img check` must be content, and its reading of the image must be ours.
 * Owns         Files in the folder it is given.
 * Invariants   None.
 * Order        None.
 * Concurrency  One folder per process.
 * Failure      -1 and a sentence.
 * Tests        tests/crash
 */
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/checked.h"
#include "sim/mem.h"
#include "sim/verify.h"

extern char **environ;

static int dump(const struct sim_file *f, const char *dir)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, f->name);
    int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
    if (fd < 0)
        return -1;
    ssize_t n = pwrite(fd, f->disk.data, f->disk.len, 0);
    close(fd);
    return n == (ssize_t)f->disk.len ? 0 : -1;
}

/* Exit code, or -1. Output goes nowhere. */
static int run(const char *dir, char *const argv[])
{
    posix_spawn_file_actions_t fa;
    pid_t pid;
    int status = -1;
    posix_spawn_file_actions_init(&fa);
    posix_spawn_file_actions_addopen(&fa, 1, "/dev/null", O_WRONLY, 0);
    posix_spawn_file_actions_addopen(&fa, 2, "/dev/null", O_WRONLY, 0);
    posix_spawn_file_actions_addchdir_np(&fa, dir);      /* where it looks for an external data file */
    int r = posix_spawnp(&pid, argv[0], &fa, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&fa);
    if (r || waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
        return -1;
    return WEXITSTATUS(status);
}

static int compare(const char *path, const uint32_t *got, uint64_t size, char *why, size_t bytes)
{
    FILE *f = fopen(path, "rb");
    uint8_t buf[SIM_SECTOR];
    int r = f ? 0 : -1;
    for (uint64_t s = 0; r == 0 && s < size / SIM_SECTOR; s++) {
        size_t n = fread(buf, 1, sizeof buf, f);
        memset(buf + n, 0, sizeof buf - n);
        if (sim_sector_gen(buf, s) != got[s]) {
            snprintf(why, bytes, "the peer reads %d in sector %llu, we read %d", (int)sim_sector_gen(buf, s), (unsigned long long)s, (int)got[s]);
            r = -1;
        }
    }
    if (f)
        fclose(f);
    return r;
}

int sim_peer_agrees(const struct sim_world *w, const char *dir, const uint32_t *got, uint64_t size, enum sim_peer_verdict verdict, char *why, size_t bytes)
{
    char image[] = SIM_DISK_NAME, made[] = "out.raw", out[256];
    snprintf(out, sizeof out, "%s/out.raw", dir);
    for (unsigned i = 0; i < w->file_count; i++)
        if (dump(w->files[i], dir) < 0) {
            snprintf(why, bytes, "cannot write into %s", dir);
            return -1;
        }
    struct sim_audit a;
    char *format = sim_qed_audit(&sim_world_find((struct sim_world *)(uintptr_t)w, SIM_DISK_NAME)->disk, &a) ? "qed" : "qcow2";
    char *const check[] = { "qemu-img", "check", "-f", format, image, NULL };
    int code = run(dir, check);
    if (code != (int)verdict) {
        snprintf(why, bytes, "qemu-img check answers %d, expected %d", code, (int)verdict);
        return -1;
    }
    char *const convert[] = { "qemu-img", "convert", "-t", "unsafe", "-f", format, "-O", "raw", image, made, NULL };
    code = run(dir, convert);
    if (code) {
        snprintf(why, bytes, "qemu-img convert answers %d", code);
        return -1;
    }
    return compare(out, got, size, why, bytes);
}
