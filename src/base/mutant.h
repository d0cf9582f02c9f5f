/* SPDX-License-Identifier: MIT
 *
 * mutant.h: deliberate ordering faults, to test the tester (RELIABILITY RG4). In every build but the mutant
 * runner's MUTANT() is the constant 0 and costs nothing.
 */
#ifndef BASE_MUTANT_H
#define BASE_MUTANT_H

enum mutant_id {
    MUT_NONE = 0,
    /* dependencies */
    MUT_NO_DATA_DEP,          /* meta_need_data_barrier forgets */
    MUT_NO_TABLE_DEP,         /* meta_need_table_barrier forgets */
    MUT_TABLES_FIRST,         /* a pass writes tables before counts, without a barrier between */
    MUT_NO_FREEZE,            /* a pass copies tables when it writes them, not at its freeze */
    MUT_FREE_EARLY,           /* a freed cluster does not wait for the pass that unlinks it (Q9 a) */
    MUT_FREE_NO_GRACE,        /* ... nor for the requests that saw it (Q9 b) */
    MUT_FREE_BEFORE_PUNCH,    /* ... nor for its punch (Q9 c) */
    MUT_KNOWN_ZERO_ALWAYS,    /* a reused cluster is taken for zeros (D4) */
    MUT_Q23_OVER_BACKING,     /* the data barrier is dropped over non-zero backing data (Q23) */
    MUT_FRONTIER_UNSETTLED,   /* the frontier is used before its counts and length are durable (D4) */
    MUT_SHARED_IN_PLACE,      /* an uncopied (shared) cluster is overwritten (Q4) */
    MUT_SHARED_L2_IN_PLACE,   /* an uncopied (shared) L2 table is changed (Q5) */
    MUT_NO_ZERO_STAMP,        /* a kept zero cluster is filled while an old writer is inside (D3) */
    MUT_SHRINK_FREE_FIRST,    /* shrink frees before the new size is durable (Q19) */
    MUT_GROW_NO_TAIL_ZERO,    /* grow leaves the old tail of the last cluster (Q19) */
    MUT_DEPENDENCIES,         /* end of the list */
    /* barriers: MUT_BARRIER + enum meta_barrier */
    MUT_BARRIER = 100,
};

#ifdef BYRE_MUTANTS
extern int byre_mutant;       /* set by the mutant runner before an image is opened */
#define MUTANT(id) (byre_mutant == (int)(id))
#else
#define MUTANT(id) 0
#endif

#endif
