/* SPDX-License-Identifier: MIT
 *
 * trace.c: recording.
 *
 * Purpose      Keeps operations and promises in the order in which they began.
 * Owns         An arena for all of it.
 * Invariants   ops and notes are sorted by the stamp of their beginning.
 * Order        durable is set by flushes alone (sim_trace_flushed) and by the completion of a FUA write.
 * Concurrency  One thread.
 * Failure      None (mem.h).
 * Tests        store_test.c
 */
#include "sim/trace.h"

#include "sim/disk.h"
#include "sim/mem.h"

#define CHUNK_BYTES (256u << 10)

struct chunk { struct chunk *next; size_t used, size; _Alignas(16) char mem[]; };

void sim_trace_init(struct sim_trace *t)
{
    *t = (struct sim_trace){ 0 };
}

void sim_trace_fini(struct sim_trace *t)
{
    for (struct chunk *c = t->chunks, *next; c; c = next) {
        next = c->next;
        sim_mem_free(c);
    }
    sim_mem_free(t->ops);
    sim_mem_free(t->notes);
    sim_trace_init(t);
}

void *sim_trace_alloc(struct sim_trace *t, size_t bytes)
{
    struct chunk *c = t->chunks;
    bytes = (bytes + 15) & ~(size_t)15;
    if (!c || c->size - c->used < bytes) {
        size_t size = bytes > CHUNK_BYTES ? bytes : CHUNK_BYTES;
        c = (struct chunk *)sim_mem_alloc(sizeof *c + size);
        c->next = t->chunks;
        c->size = size;
        t->chunks = c;
    }
    void *p = c->mem + c->used;
    c->used += bytes;
    return p;
}

struct sim_op *sim_trace_op(struct sim_trace *t, enum sim_op_kind kind, uint32_t file, uint64_t stamp)
{
    struct sim_op *op = (struct sim_op *)sim_trace_alloc(t, sizeof *op);
    *op = (struct sim_op){ .kind = kind, .file = file, .issued = stamp, .effect = SIM_NEVER, .done = SIM_NEVER, .durable = SIM_NEVER };
    SIM_PUSH_ROOM(t->ops, t->op_count, t->op_cap);
    t->ops[t->op_count++] = op;
    return op;
}

struct sim_note *sim_trace_note(struct sim_trace *t, enum sim_note_kind kind, uint64_t stamp)
{
    SIM_PUSH_ROOM(t->notes, t->note_count, t->note_cap);
    struct sim_note *n = &t->notes[t->note_count++];
    *n = (struct sim_note){ .kind = kind, .stamp = stamp };
    return n;
}

void sim_trace_flushed(struct sim_trace *t, uint32_t file, uint64_t issued, uint64_t stamp, bool ok)
{
    for (size_t i = t->op_count; i-- > 0;) {
        struct sim_op *op = t->ops[i];
        if (op->file != file || op->kind == SIM_FLUSH || op->done >= issued || op->durable != SIM_NEVER || op->lost)
            continue;
        if (ok)
            op->durable = stamp;
        else
            op->lost = true;
    }
}

struct hash128 sim_trace_hash(const struct sim_trace *t)
{
    struct hash_stream h;
    hash_init(&h, 1);
    for (size_t i = 0; i < t->op_count; i++) {
        const struct sim_op *op = t->ops[i];
        uint64_t v[] = { op->kind, op->file, op->first, op->count, op->len, op->issued, op->effect, op->done, op->durable };
        for (size_t k = 0; k < sizeof v / sizeof v[0]; k++)
            hash_update_u64(&h, v[k]);
        if (op->data)
            hash_update(&h, op->data, (size_t)op->count * SIM_SECTOR);
    }
    for (size_t i = 0; i < t->note_count; i++) {
        const struct sim_note *n = &t->notes[i];
        uint64_t v[] = { n->kind, n->id, n->gen, n->stamp, n->off, n->len };
        for (size_t k = 0; k < sizeof v / sizeof v[0]; k++)
            hash_update_u64(&h, v[k]);
    }
    return hash_value(&h);
}
