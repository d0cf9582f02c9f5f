/* SPDX-License-Identifier: MIT
 *
 * nbd_name_test.c: names of disks on NBD servers, and what must not be read as one.
 *
 * Tests        nbd_name.c
 */
#include "base/test.h"

#include <stdlib.h>
#include <string.h>

#include "stor/nbd.h"

struct row {
    const char *text;
    int where;                           /* -1: refused */
    const char *host, *port, *path, *export, *again;     /* again: what it is written as; NULL: as text */
};

static const struct row rows[] = {
    { "nbd://h", STOR_NBD_INET, "h", NULL, NULL, "", NULL },
    { "nbd://h/", STOR_NBD_INET, "h", NULL, NULL, "", "nbd://h" },
    { "nbd://", STOR_NBD_INET, "localhost", NULL, NULL, "", "nbd://localhost" },
    { "nbd://h:12/e/f", STOR_NBD_INET, "h", "12", NULL, "e/f", NULL },
    { "nbd+tcp://h:12/e", STOR_NBD_INET, "h", "12", NULL, "e", "nbd://h:12/e" },
    { "nbd://[::1]:5/e", STOR_NBD_INET, "::1", "5", NULL, "e", NULL },
    { "nbd://[fe80::1%25eth0]/", STOR_NBD_INET, "fe80::1%eth0", NULL, NULL, "", "nbd://[fe80::1%25eth0]" },
    { "nbd://h//e", STOR_NBD_INET, "h", NULL, NULL, "/e", NULL },
    { "nbd://h/a%20b%2Fc%c3%A4", STOR_NBD_INET, "h", NULL, NULL, "a b/c\xc3\xa4", "nbd://h/a%20b/c%C3%A4" },
    { "nbd://h/%41", STOR_NBD_INET, "h", NULL, NULL, "A", "nbd://h/A" },
    { "nbd+unix:///?socket=/s", STOR_NBD_UNIX, NULL, NULL, "/s", "", "nbd+unix://?socket=/s" },
    { "nbd+unix://?socket=/s", STOR_NBD_UNIX, NULL, NULL, "/s", "", NULL },
    { "nbd+unix:///e?socket=a%3fb", STOR_NBD_UNIX, NULL, NULL, "a?b", "e", "nbd+unix:///e?socket=a%3Fb" },
    { "nbd+vsock://2:10809/e", STOR_NBD_VSOCK, "2", "10809", NULL, "e", NULL },
    { "nbd:h:10", STOR_NBD_INET, "h", "10", NULL, NULL, "nbd://h:10" },
    { "nbd:h:10:exportname=a%20b:c", STOR_NBD_INET, "h", "10", NULL, "a%20b:c", "nbd://h:10/a%2520b:c" },
    { "nbd:[::1]:10", STOR_NBD_INET, "::1", "10", NULL, NULL, "nbd://[::1]:10" },
    { "nbd:unix:/s", STOR_NBD_UNIX, NULL, NULL, "/s", NULL, "nbd+unix://?socket=/s" },
    { "nbd:unix:/s:exportname=e", STOR_NBD_UNIX, NULL, NULL, "/s", "e", "nbd+unix:///e?socket=/s" },
    { "nbd:", -1 }, { "nbd:h", -1 }, { "nbd:h:", -1 }, { "nbd:unix:", -1 }, { "nbd:[::1", -1 }, { "nbd+unix:///", -1 }, { "nbd+unix://h/?socket=/s", -1 },
    { "nbd+unix:///?socket=", -1 }, { "nbd+unix:///?socket=/a&socket=/b", -1 }, { "nbd://h?socket=/s", -1 }, { "nbd://h/e?x=1", -1 }, { "nbd://h/e#f", -1 },
    { "nbd://u@h/", -1 }, { "nbd://h/%", -1 }, { "nbd://h/%4", -1 }, { "nbd://h/%zz", -1 }, { "nbd://h/%00x", -1 },
    { "nbds://h", STOR_NBD_INET, "h", NULL, NULL, "", NULL },
    { "nbds+tcp://al%40ice@h:12/e", STOR_NBD_INET, "h", "12", NULL, "e", "nbds://al%40ice@h:12/e" },
    { "nbds+unix://alice@/e?socket=/s&tls-certificates=c/d", STOR_NBD_UNIX, NULL, NULL, "/s", "e", "nbds+unix://alice@/e?socket=/s&tls-certificates=c/d" },
    { "nbds+unix:///?tls-psk-file=/k&socket=/s", STOR_NBD_UNIX, NULL, NULL, "/s", "", "nbds+unix://?socket=/s&tls-psk-file=/k" },
    { "nbds://h?tls-hostname=x&tls-verify-peer=false", STOR_NBD_INET, "h", NULL, NULL, "", NULL },
    { "nbds+vsock://2", STOR_NBD_VSOCK, "2", NULL, NULL, "", NULL },
    { "nbds://h?tls-psk-file=a&tls-certificates=b", -1 }, { "nbds://h?tls-psk-file=a&tls-psk-file=b", -1 }, { "nbds://h?tls-verify-peer=maybe", -1 },
    { "nbd://h?tls-psk-file=a", -1 }, { "nbds://h?odd=1", -1 }, { "nbds+unix://a@h/?socket=/s", -1 },
    { "nbd+x://h", -1 }, { "nbd+fd://s/x", -1 },
    { "nbd://[::1", -1 }, { "nbd://[::1]x", -1 }, { "http://h", -1 }, { "", -1 },
};

static bool same(const char *a, const char *b) { return a == b || (a && b && !strcmp(a, b)); }

static void test_rows(void **state)
{
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const struct row *t = &rows[i];
        struct stor_nbd_opts o, again;
        struct byre_err err = { 0 };
        int r = stor_nbd_parse(t->text, &o, &err);
        if (t->where < 0) {
            assert_true(r < 0 && err.text[0] && !o.host && !o.path && !o.port && !o.export);
            continue;
        }
        if (r || (int)o.where != t->where || !same(o.host, t->host) || !same(o.port, t->port) || !same(o.path, t->path) || !same(o.export, t->export))
            fail_msg("'%s': %d %s, host %s, port %s, path %s, export %s", t->text, r, err.text, o.host, o.port, o.path, o.export);
        char *text = stor_nbd_text(&o);
        assert_string_equal(text, t->again ? t->again : t->text);
        assert_int_equal(stor_nbd_parse(text, &again, NULL), 0);
        assert_true(again.where == o.where && same(again.host, o.host) && same(again.port, o.port) && same(again.path, o.path));
        assert_string_equal(again.export, o.export ? o.export : "");
        stor_nbd_opts_fini(&o);
        stor_nbd_opts_fini(&again);
        free(text);
    }
}

static void test_limits(void **state)
{
    struct stor_nbd_opts o;
    static char text[6000] = "nbd://h/";
    memset(text + 8, 'x', 4096);
    assert_int_equal(stor_nbd_parse(text, &o, NULL), 0);
    stor_nbd_opts_fini(&o);
    text[8 + 4096] = 'x';
    assert_int_equal(stor_nbd_parse(text, &o, NULL), -EINVAL);
    memset(text, 0, sizeof text);
    memcpy(text, "nbd+unix:///?socket=", 20);
    memset(text + 20, 's', 107);
    assert_int_equal(stor_nbd_parse(text, &o, NULL), 0);
    stor_nbd_opts_fini(&o);
    text[127] = 's';
    assert_int_equal(stor_nbd_parse(text, &o, NULL), -EINVAL);
}

int main(void)
{
    static const struct CMUnitTest tests[] = { cmocka_unit_test(test_rows), cmocka_unit_test(test_limits) };
    return cmocka_run_group_tests_name("nbd_name", tests, NULL, NULL);
}
