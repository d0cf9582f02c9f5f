/* SPDX-License-Identifier: MIT
 *
 * create_opts.h: options of creating and amending images as JSON has them, by the rows that the command line has (fmt/create_rows.h).
 */
#ifndef JOB_CREATE_OPTS_H
#define JOB_CREATE_OPTS_H

#include <jansson.h>

#include "fmt/create_rows.h"

#define CREATE_OPT_NAME_MAX 64u
/* The row that a member means: "cluster-size" is cluster_size, "version" is compat, "key-secret" in "encrypt" is encrypt.key-secret. in: the name of
 * the member that it stands in, NULL: none. NULL: there is no such option. */
const struct opt_row *create_opt_row(const struct opt_row *rows, const char *in, const char *key);
/* Takes every member but those named in `skip` (ends with NULL). The members of an object belong to the options in its name. On failure fields
 * taken so far stay set (opt_fini). */
MUST_USE int create_opts_take(const json_t *options, const char *const *skip, const struct opt_row *rows, struct fmt_create_opts *fo, uint64_t *seen,
                             struct byre_err *err);

#endif
