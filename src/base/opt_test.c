/* SPDX-License-Identifier: MIT
 *
 * opt_test.c: every type, its bounds and overflows, the grammar of command lines and lists, failing memory, and
 * the documents made from rows.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/opt.h"
#include "base/test.h"

struct box {
    bool flag, other;
    char *text;
    uint64_t size, num;
    uint32_t small, small_size;
    int word;
    struct opt_list many;
    uint64_t bounded;
};

static const struct opt_enum words[] = { { "off", 0 }, { "metadata", 7 }, { "meta", 7 }, { "full", 9 }, { NULL, 0 } };

static const struct opt_row rows[] = {
    { "flag", 'f', OPT_BOOL, OPT_AT(struct box, flag), .help = "a flag" },
    { "other", 'x', OPT_BOOL, OPT_AT(struct box, other), .help = "another flag" },
    { "text", 't', OPT_STR, OPT_AT(struct box, text), .arg = "WORDS", .help = "some text" },
    { "size", 's', OPT_SIZE, OPT_AT(struct box, size), .help = "a size" },
    { "num", 'n', OPT_UINT, OPT_AT(struct box, num), .help = "a number", .def = "75000" },
    { "small", 0, OPT_UINT, OPT_AT(struct box, small), .help = "32 bits" },
    { "small-size", 0, OPT_SIZE, OPT_AT(struct box, small_size), .help = "a 32-bit size" },
    { "word", 'w', OPT_ENUM, OPT_AT(struct box, word), .names = words, .help = "a word" },
    { "many", 'm', OPT_LIST, OPT_AT(struct box, many), .help = "a list" },
    { "bounded", 'b', OPT_UINT, OPT_AT(struct box, bounded), .min = 1, .max = 16, .help = "1 to 16" },
    { "object", 0, OPT_STR, .flags = OPT_LATER, .help = "an object" },
    { "extended", 0, OPT_BOOL, .flags = OPT_LATER, .help = "later" },
    { "old", 'o', OPT_BOOL, OPT_AT(struct box, other), .flags = OPT_HIDDEN, .help = "hidden" },
    { .short_name = 'q', .type = OPT_BOOL, OPT_AT(struct box, other), .help = "only short" },
    OPT_END
};

static long fail_after = -1;      /* allocations of the module that still succeed; -1: all */
static bool may_allocate(void)
{
    if (fail_after > 0)
        return fail_after--, true;
    return fail_after < 0;
}
char *__real_strdup(const char *s);
void *__real_reallocarray(void *p, size_t n, size_t size);
void *__real_malloc(size_t n);
char *__wrap_strdup(const char *s);
void *__wrap_reallocarray(void *p, size_t n, size_t size);
void *__wrap_malloc(size_t n);
char *__wrap_strdup(const char *s) { return may_allocate() ? __real_strdup(s) : NULL; }
void *__wrap_reallocarray(void *p, size_t n, size_t size) { return may_allocate() ? __real_reallocarray(p, n, size) : NULL; }
void *__wrap_malloc(size_t n) { return may_allocate() ? __real_malloc(n) : NULL; }

#define DOCUMENT_MAX 8192
#define ARGS_MAX 16
/* Parses up to ARGS_MAX words given as one string with blanks between them. */
static int run(struct box *b, const char *line, struct opt_result *res, struct byre_err *err)
{
    static char copy[256];
    static char *argv[ARGS_MAX];
    int argc = 0;
    snprintf(copy, sizeof copy, "%s", line);
    for (char *save = NULL, *w = strtok_r(copy, " ", &save); w; w = strtok_r(NULL, " ", &save))
        argv[argc++] = w;
    memset(b, 0, sizeof *b);
    return opt_parse_args(rows, b, argc, argv, res, err);
}

static void command_lines(void **state)
{
    struct box b;
    struct opt_result res;
    struct byre_err err;
    assert_int_equal(run(&b, "one -fx --text=hello two -s 4k -n0x10 --word metadata -m a -mb three", &res, &err), 0);
    assert_true(b.flag && b.other);
    assert_string_equal(b.text, "hello");
    assert_int_equal(b.size, 4096);
    assert_int_equal(b.num, 16);
    assert_int_equal(b.word, 7);
    assert_int_equal(b.many.count, 2);
    assert_string_equal(b.many.items[1], "b");
    assert_int_equal(res.argc, 3);
    assert_string_equal(res.argv[0], "one");
    assert_string_equal(res.argv[1], "two");
    assert_string_equal(res.argv[2], "three");
    assert_true(opt_seen(rows, res.seen, "size") && !opt_seen(rows, res.seen, "bounded"));
    opt_fini(rows, &b);
    assert_null(b.text);
    assert_int_equal(b.many.count, 0);

    assert_int_equal(run(&b, "-f -- -s --text", &res, &err), 0);       /* -- ends the options */
    assert_int_equal(res.argc, 2);
    assert_string_equal(res.argv[0], "-s");
    assert_int_equal(run(&b, "-", &res, &err), 0);                     /* a lone dash is a word */
    assert_int_equal(res.argc, 1);
    assert_int_equal(run(&b, "--tex=a --text b", &res, &err), 0);      /* unique prefix; the last one holds */
    assert_string_equal(b.text, "b");
    opt_fini(rows, &b);
    assert_int_equal(run(&b, "--small 7", &res, &err), 0);             /* a whole name is never ambiguous */
    assert_int_equal(b.small, 7);
    assert_int_equal(run(&b, "--text=", &res, &err), 0);
    assert_string_equal(b.text, "");
    opt_fini(rows, &b);
    assert_int_equal(run(&b, "--text -f", &res, &err), 0);             /* a value may look like an option */
    assert_string_equal(b.text, "-f");
    opt_fini(rows, &b);
    assert_int_equal(run(&b, "", &res, &err), 0);
    assert_int_equal(res.argc, 0);
}

static const struct { const char *line; int code; const char *part; } refused[] = {
    { "-z", -EINVAL, "'-z'" }, { "-fz", -EINVAL, "'-z'" }, { "--nothing", -EINVAL, "'--nothing'" }, { "--=3", -EINVAL, "'--'" },
    { "--s 3", -EINVAL, "ambiguous" }, { "--flag=on", -EINVAL, "takes no value" }, { "-t", -EINVAL, "'-t' needs a value" },
    { "--text", -EINVAL, "'--text' needs a value" }, { "-s 1x", -EINVAL, "'-s': '1x'" }, { "-s -1", -EINVAL, "'-1'" },
    { "-s 16E", -EINVAL, "out of range" }, { "--small-size 4G", -EINVAL, "out of range" }, { "--small 4294967296", -EINVAL, "out of range" },
    { "-n 18446744073709551616", -EINVAL, "out of range" }, { "-n 1k", -EINVAL, "not a number" }, { "-n 0x", -EINVAL, "not a number" },
    { "-n +1", -EINVAL, "not a number" }, { "-b 0", -EINVAL, "(1 to 16)" }, { "-b 17", -EINVAL, "(1 to 16)" },
    { "--word meatdata", -EINVAL, "one of off, metadata, meta, full" }, { "--object x", -ENOTSUP, "'--object' is not supported yet" },
    { "--extended", -ENOTSUP, "'--extended'" },
};

static void refuses(void **state)
{
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        struct box b;
        struct opt_result res;
        struct byre_err err = { 0 };
        int r = run(&b, refused[i].line, &res, &err);
        if (r != refused[i].code || !strstr(err.text, refused[i].part))
            fail_msg("'%s': %d, '%s'", refused[i].line, r, err.text);
        opt_fini(rows, &b);
    }
}

static void bounds(void **state)
{
    struct box b;
    struct opt_result res;
    assert_int_equal(run(&b, "-b 1", &res, NULL), 0);
    assert_int_equal(run(&b, "-b 16", &res, NULL), 0);
    assert_int_equal(b.bounded, 16);
    assert_int_equal(run(&b, "--small 4294967295 --small-size 4294967295 -n 18446744073709551615", &res, NULL), 0);
    assert_int_equal(b.small, UINT32_MAX);
    assert_int_equal(b.small_size, UINT32_MAX);
    assert_true(b.num == UINT64_MAX);
    assert_int_equal(b.word, 0);                /* neighbours of a 32-bit field are left alone */
}

static void lists(void **state)
{
    struct box b = { 0 };
    uint64_t seen = 0;
    struct byre_err err;
    assert_int_equal(opt_parse_list(rows, &b, "flag,text=a,,b=c,size=1M,other=off,many=1,many=2,extended=off,", &seen, &err), 0);
    assert_true(b.flag && !b.other);
    assert_string_equal(b.text, "a,b=c");
    assert_int_equal(b.size, 1048576);
    assert_int_equal(b.many.count, 2);
    assert_true(opt_seen(rows, seen, "flag") && opt_seen(rows, seen, "text") && !opt_seen(rows, seen, "num"));
    opt_fini(rows, &b);
    assert_int_equal(opt_parse_list(rows, &b, "", NULL, &err), 0);
    assert_int_equal(opt_parse_list(rows, &b, "flag=yes,flag=maybe", NULL, &err), -EINVAL);
    assert_non_null(strstr(err.text, "'maybe'"));
    assert_int_equal(opt_parse_list(rows, &b, "text", NULL, &err), -EINVAL);
    assert_int_equal(opt_parse_list(rows, &b, "tex=1", NULL, &err), -EINVAL);      /* no prefixes in lists */
    assert_int_equal(opt_parse_list(rows, &b, "=1", NULL, &err), -EINVAL);
    assert_int_equal(opt_parse_list(rows, &b, "flag,,x", NULL, &err), -EINVAL);    /* ",," is a comma of the key */
    assert_int_equal(opt_parse_list(rows, &b, "extended=on", NULL, &err), -ENOTSUP);
    opt_fini(rows, &b);
}

static void defaults_and_texts(void **state)
{
    struct box b = { 0 };
    char buf[OPT_TEXT_MAX];
    assert_int_equal(opt_defaults(rows, &b, NULL), 0);
    assert_int_equal(b.num, 75000);
    assert_string_equal(opt_text(opt_find(rows, "num"), &b, buf), "75000");
    assert_string_equal(opt_text(opt_find(rows, "flag"), &b, buf), "off");
    b.word = 7;
    assert_string_equal(opt_text(opt_find(rows, "word"), &b, buf), "metadata");
    b.word = 5;
    assert_null(opt_text(opt_find(rows, "word"), &b, buf));
    assert_null(opt_text(opt_find(rows, "text"), &b, buf));
    assert_null(opt_text(opt_find(rows, "many"), &b, buf));
    assert_null(opt_find(rows, "nothing"));
}

/* Every failing allocation gives -ENOMEM, leaks nothing (ASan) and leaves the struct good for opt_fini. */
static void memory_runs_out(void **state)
{
    for (long n = 0; ; n++) {
        struct box b = { 0 };
        struct byre_err err;
        fail_after = n;
        int r = opt_parse_list(rows, &b, "text=a,many=1,many=2,text=b,size=1", NULL, &err);
        bool ran_out = r != 0;
        fail_after = -1;
        opt_fini(rows, &b);
        if (!ran_out) {
            assert_int_equal(r, 0);
            assert_true(n > 8);
            break;
        }
        assert_int_equal(r, -ENOMEM);
    }
}

static void collect(void *arg, const char *text)
{
    char *to = arg;
    size_t n = strlen(to);
    snprintf(to + n, DOCUMENT_MAX - n, "%s", text);
}

static void documents(void **state)
{
    static char text[DOCUMENT_MAX];
    struct opt_out out = { collect, text };
    text[0] = 0;
    opt_doc_help(rows, &out);
    assert_non_null(strstr(text, "  -t, --text=WORDS          some text\n"));
    assert_non_null(strstr(text, "      --small=N             32 bits\n"));
    assert_non_null(strstr(text, "  -q                        only short\n"));
    assert_non_null(strstr(text, "a word (off, metadata, meta, full)\n"));
    assert_non_null(strstr(text, "a number [75000]\n"));
    assert_non_null(strstr(text, "an object (not supported yet)\n"));
    assert_null(strstr(text, "hidden"));
    text[0] = 0;
    opt_doc_keys(rows, &out);
    assert_non_null(strstr(text, "  size=<size>            - a size\n"));
    text[0] = 0;
    opt_doc_man(rows, &out);
    assert_non_null(strstr(text, ".It Fl t Ar WORDS , Fl Fl text Ns = Ns Ar WORDS\nsome text.\n"));
    assert_non_null(strstr(text, ".It Fl q\n"));
    assert_null(strstr(text, "hidden"));
    text[0] = 0;
    opt_doc_words(rows, &out);
    assert_non_null(strstr(text, "-w off metadata meta full\n--word off metadata meta full\n"));
    assert_non_null(strstr(text, "--flag\n"));
    assert_non_null(strstr(text, "-t WORDS\n"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(command_lines), cmocka_unit_test(refuses), cmocka_unit_test(bounds), cmocka_unit_test(lists),
        cmocka_unit_test(defaults_and_texts), cmocka_unit_test(memory_runs_out), cmocka_unit_test(documents),
    };
    return cmocka_run_group_tests_name("base-opt", tests, NULL, NULL);
}
