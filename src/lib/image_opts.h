/* SPDX-License-Identifier: MIT
 *
 * image_opts.h: node options given as a list.
 */
#ifndef LIB_IMAGE_OPTS_H
#define LIB_IMAGE_OPTS_H

#include "base/err.h"

struct byre_open_opts;

/* "driver=qcow2,file.filename=x" to the name json:{"driver":"qcow2","file.filename":"x"}; owned by the caller. A list
 * without driver and without file. names a file: "file.filename" may also be written "filename".
 * Sizes of the metadata caches (cache-size, l2-cache-size, refcount-cache-size) are ours to know: they go to o->cache_bytes. */
MUST_USE int image_opts_to_name(const char *list, struct byre_open_opts *o, char **ret_name, struct byre_err *err);

#endif
