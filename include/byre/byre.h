/* SPDX-License-Identifier: MIT
 *
 * byre.h: all of libbyre.
 */
#ifndef BYRE_BYRE_H
#define BYRE_BYRE_H

#include "byre/base.h"
#include "byre/amend.h"
#include "byre/bitmap.h"
#include "byre/chain.h"
#include "byre/check.h"
#include "byre/compact.h"
#include "byre/convert.h"
#include "byre/create.h"
#include "byre/ctx.h"
#include "byre/debug.h"
#include "byre/error.h"
#include "byre/export.h"
#include "byre/image.h"
#include "byre/info.h"
#include "byre/job.h"
#include "byre/map.h"
#include "byre/nbd.h"
#include "byre/queue.h"
#include "byre/secret.h"
#include "byre/snapshot.h"
#include "byre/tree.h"
#include "byre/version.h"

#endif
