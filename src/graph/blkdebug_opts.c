/* SPDX-License-Identifier: MIT
 *
 * blkdebug_opts.c: rules of the filter blkdebug, as options and as a file.
 *
 * Purpose     "inject-error" and "set-state", lists of objects; "config", a file with a section for each rule, whose rules come first.
 * Owns        Nothing.
 * Invariants  K6  What is not known, or has a value that cannot be meant, is refused by name, in the file with the number of the line.
 *             K7  What is no regular file is not read: nobody waits for one who writes to a pipe.
 * Order       None.
 * Concurrency Home loop; suspends while the file is read, by a thread of the blocking pool.
 * Failure     The filter is not made.
 * Tests       filters_test.c, tests/cli/blkdebug_test.py
 */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "graph/blkdebug.h"

#define CONFIG_BYTES_MAX 65536u

static const char *const event_words[STOR_EV_COUNT] = {
    [STOR_EV_NONE] = "none",
#define X(name, word, text) [STOR_EV_##name] = word,
    STOR_EVENT_ROWS(X)
#undef X
};

enum stor_event_kind debug_event_by_name(const char *name)
{
    enum stor_event_kind i = STOR_EV_NONE;
    while (i < STOR_EV_COUNT && strcmp(event_words[i], name))
        i++;
    return i;
}

/* ---- values: of their type, or words and digits that mean it ---- */

static bool take_number(const json_t *v, int64_t min, int64_t max, int64_t *ret)
{
    const char *s = json_string_value(v);
    char *end;
    errno = 0;
    *ret = s ? strtoll(s, &end, 0) : json_integer_value(v);
    bool number = s ? *s && !*end && !errno : json_is_integer(v);
    return number && *ret >= min && *ret <= max;
}

static bool take_bool(const json_t *v, bool *ret)
{
    const char *s = json_string_value(v);
    *ret = s ? !strcmp(s, "on") : json_is_true(v);
    return *ret || (s ? !strcmp(s, "off") : json_is_false(v));
}

static bool take_kind(const json_t *v, unsigned *ret)
{
    static const struct { const char *name; unsigned on; } kinds[] = {
        { "read", ON_READ }, { "write", ON_WRITE }, { "write-zeroes", ON_ZERO }, { "discard", ON_DISCARD }, { "flush", ON_FLUSH }, { "block-status", ON_STATUS },
    };
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        if (json_is_string(v) && !strcmp(kinds[i].name, json_string_value(v))) {
            *ret = kinds[i].on;
            return true;
        }
    return false;
}

/* ---- one rule ---- */

static bool take_error_member(struct debug_rule *u, const char *key, const json_t *v)
{
    int64_t n = 0;
    bool good = false;
    if (!strcmp(key, "iotype"))
        return take_kind(v, &u->on);
    if (!strcmp(key, "once"))
        return take_bool(v, &u->once);
    if (!strcmp(key, "immediately"))
        return take_bool(v, &u->immediately);
    if (!strcmp(key, "errno") && (good = take_number(v, 0, 4095, &n)))
        u->error = (int)n;
    if (!strcmp(key, "sector") && (good = take_number(v, -1, INT64_MAX / SECTOR, &n))) {
        u->has_sector = n >= 0;
        u->sector = (uint64_t)n;
    }
    if (!strcmp(key, "x-skip") && (good = take_number(v, 0, INT_MAX, &n)))
        u->skip = (unsigned)n;
    if (!strcmp(key, "x-delay-ns") && (good = take_number(v, 0, INT64_MAX, &n)))
        u->delay_ns = (uint64_t)n;
    return good;
}

static bool take_member(struct debug_rule *u, const char *key, const json_t *v)
{
    int64_t n;
    if (!strcmp(key, "event"))
        return json_is_string(v) && (u->event = debug_event_by_name(json_string_value(v))) < STOR_EV_COUNT;
    if (!strcmp(key, "state") && take_number(v, 0, INT_MAX, &n)) {
        u->state = (unsigned)n;
        return true;
    }
    if (!u->on && !strcmp(key, "new_state") && take_number(v, 0, INT_MAX, &n)) {
        u->new_state = (unsigned)n;
        return true;
    }
    return u->on && take_error_member(u, key, v);
}

/* what: "inject-error" or "set-state". where: "", or the file and line it is from. */
static int take_rule(struct debug_rules *all, const char *what, const json_t *o, const char *where, struct byre_err *err)
{
    bool error = !strcmp(what, "inject-error");
    struct debug_rule u = { .on = error ? ON_READ | ON_WRITE | ON_ZERO | ON_DISCARD | ON_FLUSH : 0, .error = error && !json_object_get(o, "x-delay-ns") ? EIO : 0 };
    const char *key;
    json_t *v;
    if (all->count == DEBUG_RULES_MAX)
        return byre_fail(err, LIMIT, "blkdebug: %sat most %u rules", where, DEBUG_RULES_MAX);
    if (!json_object_get(o, "event") || (!error && !json_object_get(o, "new_state")))
        return byre_fail(err, BAD_OPTION, "blkdebug: %s'%s' needs %s", where, what, error ? "'event'" : "'event' and 'new_state'");
    json_object_foreach((json_t *)(uintptr_t)o, key, v)
        if (!take_member(&u, key, v))
            return byre_fail(err, BAD_OPTION, "blkdebug: %s'%s': '%s' is not known, or cannot have the value '%s'", where, what, key, json_is_string(v) ? json_string_value(v) : "(a number, or another type)");
    all->rule[all->count++] = u;
    return 0;
}

static int take_list(struct debug_rules *all, const char *what, const json_t *list, struct byre_err *err)
{
    int r = list && !json_is_array(list) ? byre_fail(err, BAD_OPTION, "blkdebug: '%s' must be a list", what) : 0;
    for (size_t i = 0; i < json_array_size(list) && !r; i++)
        r = take_rule(all, what, json_array_get(list, i), "", err);
    return r;
}

/* ---- the file ---- */

struct config {
    const char *path;
    struct debug_rules *all;
    json_t *rule;                                /* of the section; NULL: none yet */
    const char *what;
    unsigned line, begun;                        /* where the section begins */
    char *text;
    size_t bytes;
};

static int64_t read_config(void *arg)
{
    struct config *c = arg;
    struct stat st;
    int fd = open(c->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);    /* K7 */
    if (fd < 0)
        return -errno;
    int r = fstat(fd, &st) ? -errno : S_ISREG(st.st_mode) ? 0 : S_ISDIR(st.st_mode) ? -EISDIR : -EINVAL;
    for (ssize_t n = 1; !r && n; c->bytes += (size_t)n) {
        n = read(fd, c->text + c->bytes, CONFIG_BYTES_MAX - c->bytes);
        r = n < 0 ? -errno : c->bytes + (size_t)n == CONFIG_BYTES_MAX ? -EFBIG : 0;
        n = r ? 0 : n;
    }
    c->text[c->bytes] = 0;
    close(fd);                                   /* it was only read */
    return r;
}

static int end_section(struct config *c, struct byre_err *err)
{
    char where[PATH_MAX + 32];
    snprintf(where, sizeof where, "%s:%u: ", c->path, c->begun);
    int r = c->rule ? take_rule(c->all, c->what, c->rule, where, err) : 0;
    json_decref(c->rule);
    c->rule = NULL;
    return r;
}

static int bad_line(const struct config *c, struct byre_err *err)
{
    return byre_fail(err, BAD_OPTION, "blkdebug: %s:%u: neither [inject-error], [set-state] nor NAME = \"VALUE\" behind one of them", c->path, c->line);
}

/* [inject-error] or [inject-error "a name"] */
static int begin_section(struct config *c, const char *s, struct byre_err *err)
{
    static const char *const words[] = { "inject-error", "set-state" };
    int r = end_section(c, err);
    for (size_t i = 0; i < 2 && !r; i++) {
        size_t n = strlen(words[i]);
        if (strncmp(s + 1, words[i], n) || (s[1 + n] != ']' && s[1 + n] != ' ') || !strchr(s + n, ']'))
            continue;
        c->what = words[i];
        c->begun = c->line;
        c->rule = json_object();
        return c->rule ? 0 : byre_fail(err, NOMEM, "no memory for a rule");
    }
    return r ? r : bad_line(c, err);
}

/* NAME = "VALUE" */
static int take_line(struct config *c, char *s, struct byre_err *err)
{
    char *eq = strchr(s, '='), *open = eq ? strchr(eq, '"') : NULL, *shut = open ? strrchr(open, '"') : NULL;
    size_t name = strcspn(s, " \t=");
    if (!c->rule || !open || shut == open || shut[1 + strspn(shut + 1, " \t\r")] || eq[1 + strspn(eq + 1, " \t")] != '"' || s + name + strspn(s + name, " \t") != eq)
        return bad_line(c, err);
    s[name] = 0;
    *shut = 0;
    return json_object_set_new(c->rule, s, json_string(open + 1)) ? bad_line(c, err) : 0;
}

static int parse_config(struct config *c, struct byre_err *err)
{
    int r = 0;
    for (char *s = c->text, *next; s && !r; s = next) {
        next = strchr(s, '\n');
        if (next)
            *next++ = 0;
        c->line++;
        s += strspn(s, " \t\r");
        if (*s == '[')
            r = begin_section(c, s, err);
        else if (*s && *s != '#')
            r = take_line(c, s, err);
    }
    int last = r ? 0 : end_section(c, err);
    json_decref(c->rule);
    return r ? r : last;
}

static int take_config(struct co *co, struct debug_rules *all, const char *path, struct byre_err *err)
{
    AUTOFREE char *text = malloc(CONFIG_BYTES_MAX + 1);
    struct config c = { .path = path, .all = all, .text = text };
    if (!text)
        return byre_fail(err, NOMEM, "no memory for the rules of '%s'", path);
    int r = (int)rt_blocking(co, read_config, &c);
    if (r)
        return byre_fail_code(err, IO, r, "blkdebug: the file of rules '%s' cannot be read: %s", path, r == -EINVAL ? "it is no regular file" : strerror(-r));
    if (strlen(text) < c.bytes)
        return byre_fail(err, BAD_OPTION, "blkdebug: the file of rules '%s' has a byte 0 at %zu", path, strlen(text));
    return parse_config(&c, err);
}

int debug_rules_take(struct co *co, struct debug_rules *all, const json_t *o, struct byre_err *err)
{
    const json_t *config = json_object_get(o, "config");
    int r = config && !json_is_string(config) ? byre_fail(err, BAD_OPTION, "blkdebug: 'config' must be a file name") : 0;
    if (!r && config)
        r = take_config(co, all, json_string_value(config), err);
    if (!r)
        r = take_list(all, "inject-error", json_object_get(o, "inject-error"), err);
    return r ? r : take_list(all, "set-state", json_object_get(o, "set-state"), err);
}
