/* SPDX-License-Identifier: MIT
 *
 * info_text.h: parts of `info` that other commands print too.
 */
#ifndef BIN_INFO_TEXT_H
#define BIN_INFO_TEXT_H

#include "byre/info.h"

/* "Format specific information:" and what follows; nothing for formats without. */
void info_print_specific(const struct byre_info *i);
/* The table of snapshots with its head. */
void info_print_snapshots(const struct byre_info *i);
/* An array of them; key NULL: without a name. */
struct json_out;
void info_json_snapshots(struct json_out *j, const char *key, const struct byre_info *i);

#endif
