/* SPDX-License-Identifier: MIT
 *
 * cx_model.h: what the guest may see after a crash: per sector the value of its last completed flush, or of any
 * later write to that sector (P2). Sizes likewise (P3).
 *
 * A sector's content says where it belongs and which write made it, so a misplaced, stale or foreign sector is
 * recognised at once. Version 0 is zeros, version 1 the content before the run.
 */
#ifndef CX_MODEL_H
#define CX_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#define CX_SECTORS_MAX 4096u
#define CX_NEVER UINT64_MAX
#define CX_ZEROS 0u
#define CX_INITIAL 1u
#define CX_FOREIGN 0xffffffffu           /* not a value that was ever written there */
#define CX_TORN 0xfffffffeu

struct cx_value { uint64_t issued, acked; uint32_t version; };
struct cx_sector { struct cx_value *v; unsigned count, cap; };
struct cx_span { uint64_t issued, acked; };
struct cx_size { uint64_t issued, acked, bytes; };

struct cx_model {
    struct cx_sector sector[CX_SECTORS_MAX];
    struct cx_span *flush; unsigned flush_count, flush_cap;
    struct cx_size *size; unsigned size_count, size_cap;
    uint8_t *initial;                    /* guest bytes before the run */
    uint64_t initial_bytes;
};

void cx_model_init(struct cx_model *m);
void cx_model_fini(struct cx_model *m);
/* Starts over: the guest has these bytes and this size, all of it durable. Takes a copy. */
void cx_model_start(struct cx_model *m, const uint8_t *bytes, uint64_t len);
/* A request that gives [off, off+len) the version `version` was issued at `stamp`; was acknowledged at `acked`. */
void cx_model_issue(struct cx_model *m, uint64_t off, uint64_t len, uint32_t version, uint64_t stamp);
void cx_model_ack(struct cx_model *m, uint64_t off, uint64_t len, uint64_t issued, uint64_t acked);
void cx_model_flush(struct cx_model *m, uint64_t issued, uint64_t acked);
unsigned cx_model_resize(struct cx_model *m, uint64_t bytes, uint64_t issued);
void cx_model_resized(struct cx_model *m, unsigned id, uint64_t acked);

void cx_stamp(uint8_t *p, uint64_t sector, uint32_t version);
uint32_t cx_version_of(const struct cx_model *m, const uint8_t *p, uint64_t sector);
/* May a crash at stamp `cut` show this size; this version of a sector while the size is `bytes`? */
bool cx_size_ok(const struct cx_model *m, uint64_t bytes, uint64_t cut);
bool cx_sector_ok(const struct cx_model *m, uint64_t sector, uint32_t version, uint64_t bytes, uint64_t cut);

#endif
