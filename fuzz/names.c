/* SPDX-License-Identifier: MIT
 *
 * names.c: fuzz target for file names, which images record and anybody may have written.
 *
 * Purpose      Plays an input as the name of a backing file, or of a user: a path, PROTOCOL:..., json:{...}.
 * Input        byte 0: bit 0 the strict policy, bit 1 an image records it. The rest is the name, up to a byte 0.
 * Invariants   I1 a name that is taken means a path that is not empty, or no file of this machine; of one that is not, nothing is left but the reason.
 *              I2 under strict policy it is a path and nothing else; of an image, a plain one.
 *              I3 what an image records makes no filter.
 *              I4 the URI that an NBD disk's options become means that disk.
 * Tests        built with -fsanitize=fuzzer for fuzzing, with replay_main.c for `make check` (corpus/names)
 */
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "graph/graph.h"
#include "stor/nbd.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_nbd(const char *name)
{
    struct stor_nbd_opts o, again;
    if (graph_name_nbd(name, &o, NULL))
        return;
    char *uri = o.where == STOR_NBD_FD ? NULL : stor_nbd_text(&o);       /* of a descriptor no URI says anything */
    if (uri) {
        ASSERT(stor_nbd_is_name(uri) && !graph_name_nbd(uri, &again, NULL));      /* I4 */
        char *same = stor_nbd_text(&again);
        ASSERT(again.where == o.where && same && !strcmp(same, uri));
        free(same);
        stor_nbd_opts_fini(&again);
    }
    free(uri);
    stor_nbd_opts_fini(&o);
}

static void check_file(const char *name, enum graph_policy policy, const char *overlay)
{
    char *path = NULL, *data = NULL;
    struct byre_err err = { 0 };
    int r = graph_name_file(policy, name, overlay, &path, &data, &err);
    ASSERT(r ? !path && !data : path && path[0]);      /* I1 */
    ASSERT(r >= 0 || err.text[0]);
    if (policy == GRAPH_STRICT)
        ASSERT(r <= 0 && !data && (r || (overlay ? !strncmp(path, "folder/", 7) || name[0] == '/' : !strcmp(path, name))));      /* I2 */
    if (overlay)
        ASSERT(r || strncmp(name, "blkdebug:", 9));      /* I3 */
    free(path);
    free(data);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size)
        return 0;
    char *name = strndup((const char *)data + 1, size - 1);
    ASSERT(name);
    check_file(name, data[0] & 1 ? GRAPH_STRICT : GRAPH_ECOSYSTEM, data[0] & 2 ? "folder/top.qcow2" : NULL);
    check_nbd(name);
    free(name);
    return 0;
}
