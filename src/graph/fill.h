/* SPDX-License-Identifier: MIT
 *
 * fill.h: what the surroundings of a first write cost on this disk, and which way of zeroing them is cheaper (fill.c).
 */
#ifndef GRAPH_FILL_H
#define GRAPH_FILL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "fmt/fmt.h"

#define FILL_SMALL_BYTES FMT_FILL_SMALL_BYTES

/* Means of recent measurements in nanoseconds, each divided by the number of fills that were in flight; 0: nothing measured yet. All zero
 * in the beginning. */
struct fill_costs {
    _Atomic uint64_t zero_ns;            /* one zero-range call */
    _Atomic uint64_t write_ns;           /* a write of up to FILL_SMALL_BYTES bytes */
    _Atomic uint64_t mib_ns;             /* each MiB of a longer one, beyond that */
    _Atomic uint64_t turns, merged, split;       /* choices made, and how they went */
    _Atomic uint32_t going[2];           /* in flight, by way */
    _Atomic uint64_t trial_until;        /* a trial lasts for turns below that; 0: there was none yet */
    _Atomic uint32_t trial_way, trial_seen;      /* enum fill_way; what the trial has measured */
};

enum fill_way { FILL_MERGED, FILL_SPLIT };

/* One fill in flight. with: how many there were as it began, itself included; alone: none of them went the other way. */
struct fill_visit { enum fill_way way; uint32_t with; bool alone; };

struct fill_visit fill_enter(struct fill_costs *c, enum fill_way way);
void fill_leave(struct fill_costs *c, const struct fill_visit *v);
/* It took ns: its share of them; 0: it says nothing, since the two ways were mixed. */
uint64_t fill_share(const struct fill_costs *c, const struct fill_visit *v, uint64_t ns);

struct fill_estimate { bool known; uint64_t merged_ns, split_ns; };

/* ns: a share. */
void fill_saw_zero(struct fill_costs *c, uint64_t ns);
void fill_saw_write(struct fill_costs *c, uint64_t bytes, uint64_t ns);
/* Cost of a first write of `data` bytes with so many bytes in front and behind, all in bytes. */
struct fill_estimate fill_estimate(const struct fill_costs *c, uint64_t head, uint64_t data, uint64_t tail);
/* turn: a running number of the choices made for this disk, each once. */
enum fill_way fill_choose(struct fill_costs *c, uint64_t head, uint64_t data, uint64_t tail, uint64_t turn);

#endif
