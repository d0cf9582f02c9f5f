/* SPDX-License-Identifier: MIT
 *
 * verify.h: is this crash state one that a guest may meet? The steps:
 *   (a) it opens read-only   (b) the check finds leaks at most, a second opinion (audit.c) agrees, leaks are bounded
 *   (c) every guest sector is legal   (d) each snapshot is there or not, as it may, and untouched   (e) bitmaps are there and hold
 *       what they must (bitmaps.h)
 *   (f) it opens for writing; now and then a snapshot is made; writes (unallocated, in the range of the last request, anywhere,
 *       where a snapshot shares), a flush, and (b) to (e) again; after a resize also growing to the full size, which shows zeros
 *   (g) repair leaves no leak, changes no guest byte, and has nothing to do a second time
 *   (h) one state in 16: the power fails again inside (f) or (g)
 *   (i) one state in 256: the peer's check and its reading of the image agree
 */
#ifndef SIM_VERIFY_H
#define SIM_VERIFY_H

#include "sim/explorer.h"
#include "sim/image.h"

struct sim_verify {
    struct sim_world *w;
    const struct sim_image *im;
    const char *peer_dir;                /* folder for (i), on tmpfs; NULL: (i) is left out */
    uint64_t nested_one_in, peer_one_in;

    char why[400];
    uint64_t states, nested, peers;      /* verified in all, of them inside others, by the peer */
    uint64_t leaks_max, bound_at_max;    /* the most leaks seen, and the bound that held for them */

    /* private */
    struct prng rng;
    const struct sim_model *m;
    uint64_t in_flight;                  /* clusters that the cut may leave as leaks */
    uint32_t *got, *expect;
    uint8_t *buf;
    unsigned depth;
    bool in_resize;
    uint64_t size;                       /* as found */
    struct sim_snap made;                /* the snapshot that (f) has made; state NONE: none */
    uint32_t *made_gens;
    uint64_t flags;                      /* COPIED flags that the last check did not like */
};

void sim_verify_init(struct sim_verify *v, struct sim_world *w, const struct sim_image *im);
void sim_verify_fini(struct sim_verify *v);
/* Verifies the state that x has made. 0; -1: `why`. The files are afterwards as before. */
int sim_verify_state(struct sim_verify *v, const struct sim_explorer *x, uint64_t seed);

/* ---- peer.c ---- */
/* Writes the files into dir, lets qemu-img check and read them. got: what the sectors must hold. 0; -1: why. */
enum sim_peer_verdict { SIM_PEER_CLEAN = 0, SIM_PEER_FLAGS = 2, SIM_PEER_LEAKS = 3 };    /* exit codes of its check */
int sim_peer_agrees(const struct sim_world *w, const char *dir, const uint32_t *got, uint64_t size, enum sim_peer_verdict verdict, char *why, size_t bytes);

#endif
