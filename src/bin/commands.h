/* SPDX-License-Identifier: MIT
 *
 * commands.h: the list of subcommands, in the order of the help.
 */
#ifndef BIN_COMMANDS_H
#define BIN_COMMANDS_H

#include "bin/bin.h"

#define BIN_COMMANDS(X) X(create) X(info) X(check) X(compact) X(map) X(measure) X(convert) X(compare) X(resize) X(bitmap) X(amend) X(snapshot) X(commit) X(rebase) X(tree) X(dd) X(bench) X(io) X(serve) X(nbd) X(daemon) X(ctl) X(job) X(help) X(completion)

#define X(name) extern const struct cmd cmd_##name;
BIN_COMMANDS(X)
#undef X

#endif
