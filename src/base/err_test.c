/* SPDX-License-Identifier: MIT
 *
 * err_test.c: reasons, byre_fail, assertions, cleanup helpers, endian types, checked arithmetic.
 */
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/endian.h"
#include "base/err.h"
#include "base/test.h"

static void fills_error(void **state)
{
    struct byre_err e;
    assert_int_equal(byre_fail(&e, BACKING_LOOP, "%s: %d", "disk", 7), -ELOOP);
    assert_int_equal(e.code, -ELOOP);
    assert_string_equal(e.reason, "BACKING_LOOP");
    assert_string_equal(e.text, "disk: 7");
    assert_int_equal(byre_fail_code(&e, SYSTEM, -EACCES, "open"), -EACCES);
    assert_int_equal(e.code, -EACCES);
    assert_string_equal(e.reason, "SYSTEM");
    assert_int_equal(byre_fail(NULL, NO_SPACE, "x"), -ENOSPC);
}

static void text_may_quote_itself(void **state)
{
    struct byre_err e;
    (void)byre_fail(&e, IO, "inner");
    (void)byre_fail(&e, BACKING_OPEN, "outer: %s", e.text);
    assert_string_equal(e.text, "outer: inner");
}

static void long_text_is_cut_between_characters(void **state)
{
    struct byre_err e;
    char big[2 * BYRE_ERR_TEXT_MAX];
    for (size_t lead = 0; lead < 4; lead++) {
        memset(big, 'x', sizeof big);
        for (size_t i = lead; i + 4 < sizeof big; i += 4)
            memcpy(big + i, "\xf0\x9f\x92\xbe", 4);
        big[sizeof big - 1] = 0;
        (void)byre_fail(&e, IO, "%s", big);
        size_t n = strlen(e.text);
        assert_in_range(n, BYRE_ERR_TEXT_MAX - 4, BYRE_ERR_TEXT_MAX - 1);
        assert_int_equal((n - lead) % 4, 0);
    }
    memset(big, 'x', sizeof big - 1);
    (void)byre_fail(&e, IO, "%s", big);
    assert_int_equal(strlen(e.text), BYRE_ERR_TEXT_MAX - 1);
}

static void table_is_whole(void **state)
{
    for (int i = 0; i < BYRE_R_COUNT; i++) {
        assert_true(byre_reason_errno(i) > 0);
        assert_true(strlen(byre_reason_text(i)) > 3);
        for (int k = 0; k < i; k++)
            assert_string_not_equal(byre_reason_name(i), byre_reason_name(k));
    }
    assert_string_equal(byre_reason_name(BYRE_R_LIMIT), "LIMIT");
}

static void assertion_aborts(void **state)
{
    int pipe_fd[2], status;
    char text[600] = { 0 };
    assert_int_equal(pipe(pipe_fd), 0);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(pipe_fd[1], 2);
        signal(SIGABRT, SIG_DFL);
        INV(I7, pid == 1);
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    assert_true(read(pipe_fd[0], text, sizeof text - 1) > 0);
    assert_non_null(strstr(text, "invariant I7 failed: pid == 1"));
    close(pipe_fd[0]);
    close(pipe_fd[1]);
    ASSERT(pid > 0);    /* a true condition goes on */
}

static int freed;
static void note_free(int **p)
{
    freed += *p != NULL;
    free(*p);
}

static int *make_int(void)
{
    CLEANUP(note_free) int *a = malloc(sizeof *a);
    CLEANUP(note_free) int *b = malloc(sizeof *b);
    AUTOFREE char *c = malloc(3);
    (void)b;
    (void)c;
    return TAKE(a);
}

static void cleanup_takes_and_frees(void **state)
{
    int *a = make_int();
    assert_non_null(a);
    assert_int_equal(freed, 1);
    free(a);
}

static void endian_bytes(void **state)
{
    be32 b;
    le64 l;
    be32_put(&b, 0x514649fb);
    assert_memory_equal(b.b, "QFI\xfb", 4);
    assert_int_equal(be32_get(&b), 0x514649fb);
    le64_put(&l, 0x0102030405060708);
    assert_memory_equal(l.b, "\x08\x07\x06\x05\x04\x03\x02\x01", 8);
    assert_int_equal(le64_get(&l), 0x0102030405060708);
    uint64_t word;
    memcpy(&word, "\0\0\0\0\0\0\1\2", 8);
    assert_int_equal(be64_word(word), 0x102);
}

static void checked_arithmetic(void **state)
{
    uint64_t v;
    assert_true(add_overflows(UINT64_MAX, 1, &v));
    assert_false(mul_overflows(UINT32_MAX, UINT32_MAX, &v));
    assert_true(mul_overflows(1ull << 33, 1ull << 31, &v));
    assert_int_equal(div_up(UINT64_MAX, 2), 1ull << 63);
    assert_int_equal(round_up(513, 512), 1024);
    assert_int_equal(round_down(1023, 512), 512);
    assert_true(range_inside(10, 0, 10));
    assert_false(range_inside(11, 0, 10));
    assert_false(range_inside(5, UINT64_MAX, 10));
    assert_true(is_pow2(1) && !is_pow2(0) && !is_pow2(12));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fills_error), cmocka_unit_test(text_may_quote_itself),
        cmocka_unit_test(long_text_is_cut_between_characters), cmocka_unit_test(table_is_whole),
        cmocka_unit_test(assertion_aborts), cmocka_unit_test(cleanup_takes_and_frees),
        cmocka_unit_test(endian_bytes), cmocka_unit_test(checked_arithmetic),
    };
    return cmocka_run_group_tests_name("base-err", tests, NULL, NULL);
}
