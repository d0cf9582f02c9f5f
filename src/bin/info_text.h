/* SPDX-License-Identifier: MIT
 *
 * info_text.h: parts of `info` that other commands print too.
 */
#ifndef BIN_INFO_TEXT_H
#define BIN_INFO_TEXT_H

#include "byre/info.h"

/* "Format specific information:" and what follows; nothing for formats without. */
void info_print_specific(const struct byre_info *i);

#endif
