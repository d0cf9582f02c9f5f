/* SPDX-License-Identifier: MIT
 *
 * create_rows.h: the options of creating and amending images. Whoever takes them from a user, on a command line or as JSON, parses them by
 * these rows into struct fmt_create_opts, so that names, bounds, defaults and words are said once.
 *
 * Concurrency  any thread
 */
#ifndef FMT_CREATE_ROWS_H
#define FMT_CREATE_ROWS_H

#include "base/opt.h"
#include "fmt/fmt.h"

/* The rows of a format, for struct fmt_create_opts; NULL: no such format. with_file_options: of the file that holds the image, too. */
const struct opt_row *fmt_create_rows(const char *format, bool with_file_options);
/* The same for options that can be changed later. */
const struct opt_row *fmt_amend_rows(const char *format);
/* Names in the order of the line that is told before creation; ends with NULL. */
const char *const *fmt_create_order(const char *format);

#endif
