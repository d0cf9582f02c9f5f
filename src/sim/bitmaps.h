/* SPDX-License-Identifier: MIT
 *
 * bitmaps.h: what the persistent bitmaps of a disk must say after a crash (P4, G.014).
 *
 * Rules
 *   K1  A bitmap is there, and records, as the last action that was acknowledged left it, or as one that is under way leaves it.
 *   K2  It is in use and claimed, or not in use: it is never lost.
 *   K3  It holds at least what it held when it began to record, and each sector whose content comes from a request that was
 *       issued later.
 *   K4  After a close that nothing went wrong before it is not in use and holds nothing else: a granule is dirty only if some
 *       request has touched it.
 *   K5  Where a sector shows a later request that a claimed bitmap records, the generation is another one than before (G.018).
 */
#ifndef SIM_BITMAPS_H
#define SIM_BITMAPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SIM_BITMAPS 3u
extern const char *const sim_bitmap_name[SIM_BITMAPS];

struct sim_disk;
struct sim_model;
struct sim_note;

/* As the bytes of a disk have it, read by audit.c. */
struct sim_found { bool there, in_use, claimed, enabled, broken; unsigned granularity_bits; uint64_t bit_count; uint8_t *bits; };
void sim_audit_bitmaps(const struct sim_disk *d, struct sim_found found[SIM_BITMAPS]);
/* The generation that the disk has, with its bit in front; 0: none. */
uint64_t sim_audit_generation(const struct sim_disk *d);
/* Does the disk say that the flags of single owners may be missing? (Q27) */
bool sim_audit_flags_missing(const struct sim_disk *d);
void sim_found_free(struct sim_found found[SIM_BITMAPS]);
bool sim_found_dirty(const struct sim_found *f, uint64_t sector);

/* As it may be: one legal state of a bitmap. since: stamp from which on requests are recorded; SIM_NEVER: not known yet. */
struct sim_bm_state { bool there, enabled; uint64_t since; bool *must, *had_zero; };
struct sim_bm { struct sim_bm_state now, alt; bool open; uint64_t issued; bool *may; };

void sim_bitmaps_init(struct sim_model *m);
void sim_bitmaps_fini(struct sim_model *m);
/* Begins with what the disk has; the content is as the model has it. */
void sim_bitmaps_start(struct sim_model *m, const struct sim_disk *d);
/* Is this action possible now? (slot, other slot of a merge) */
bool sim_bitmap_can(const struct sim_model *m, char action, unsigned slot, unsigned from);
/* Called by sim_model_apply: actions, and requests. */
void sim_bitmaps_note(struct sim_model *m, const struct sim_note *n);

/* Judges the bytes of a disk whose sectors hold `got` (one per sector of `size`). closed: K4's first half. 0; -1: why. */
/* Where the header has no room for an order without that moment (Q17), all of them may be lost by an action that is under way, and by
 * whoever opened the disk behind a crash, which writes the set anew when it grows or was unclean, when that is cut short as well. */
enum sim_vanish { SIM_STAY, SIM_VANISH_IN_ACTION, SIM_VANISH };
/* How the image was left: by whoever goes on; closed; closed before a scrub has looked it through: then one that records nothing may be in use. */
enum sim_closed { SIM_OPEN, SIM_CLOSED, SIM_CLOSED_UNCLEAN };
int sim_bitmaps_judge(const struct sim_model *m, const struct sim_disk *d, const uint32_t *got, uint64_t size, enum sim_closed closed, enum sim_vanish vanish, char *why, size_t bytes);
/* K4, at the end of a run that went well. */
int sim_bitmaps_judge_exact(const struct sim_model *m, const struct sim_disk *d, char *why, size_t bytes);

#endif
