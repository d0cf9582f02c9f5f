/* SPDX-License-Identifier: MIT
 *
 * mutant.h: deliberate faults that prove the crash explorer (RG4). In every build but one MUTANT(id) is the
 * constant 0 and costs nothing. The mutant runner of src/sim and the explorers of tests/crash link copies of meta, fmt, graph,
 * copy and job, compiled with -DBYRE_MUTANTS, in which the one mutant chosen by the runner, or by BYRE_MUTANT, is alive.
 *
 * How to place one: write the right code, and in front of the step that makes it right
 *
 *     if (MUTANT(MUT_BARRIER(which)))  return 0;              a barrier that is not issued
 *     if (!MUTANT(MUT_NEED_DATA_BARRIER))  m->need_data = true;
 *
 * Every row below must be placed somewhere, reached by a workload and caught by the explorer, or be explained in
 * docs/internals/ordering.md; the runner fails otherwise. The runner's workloads have one image; what needs several is caught by an
 * explorer of tests/crash (docs/internals/adding.md has the steps).
 */
#ifndef BASE_MUTANT_H
#define BASE_MUTANT_H

/* Barriers by number (enum meta_barrier): ids 1..32. */
#define MUT_BARRIERS_MAX 32
#define MUT_BARRIER(b) (1 + (int)(b))

/* X(name, rule, what the mutant does) */
#define BYRE_MUTANT_ROWS(X)                                                                             \
    X(NEED_DATA_BARRIER, "Q1 Q2", "a table entry does not ask for the barrier behind data and counts")  \
    X(SCRUB_CLEAN_EARLY, "Q12", "a scrub takes the dirty bit away before the counts are durable")       \
    X(SCRUB_BLIND, "G.001", "a scrub judges clusters that changed while it looked")                     \
    X(SCRUB_FORGETS_QUARANTINE, "Q9 G.001", "a scrub frees clusters that wait in quarantine")           \
    X(UNCLEAN_USED_EARLY, "Q12", "old clusters of an unclean image are used before trust is back")      \
    X(LAZY_DATA_TOO, "Q12", "lazy refcounts drop the barrier behind data too")                       \
    X(LAZY_DIRTY_LATE, "Q12", "lazy refcounts begin before the dirty bit is durable")                   \
    X(LAZY_CLEAN_EARLY, "Q12", "the dirty bit is taken away before the counts are durable")             \
    X(NEED_TABLE_BARRIER, "E2", "a root entry does not ask for the barrier behind tables")              \
    X(FREE_SKIP_DURABLE, "Q9a", "freed space does not wait for the pass that unlinks it")               \
    X(FREE_SKIP_GRACE, "Q9b D3", "freed space does not wait for requests that may have seen it")        \
    X(FREE_SKIP_PUNCH, "Q9c", "freed space is handed out before its punch has completed")               \
    X(COUNT_DOWN_EARLY, "Q9 Q11", "a count goes down before the pointer is durably gone")               \
    X(COUNT_UP_LATE, "Q1", "a count goes up in a later epoch than the pointer")                         \
    X(FREEZE_NOTHING, "D5", "a pass writes the live tables, not frozen copies")                         \
    X(FLUSH_IGNORES_DIRT, "P2", "a guest flush that finds a pass running does not wait for the next")   \
    X(FRONTIER_UNSETTLED, "Q23 D4", "frontier space counts as settled before its barrier")              \
    X(REUSED_IS_ZERO, "Q23 D4", "reused clusters count as known zero")                                  \
    X(AHEAD_UNZEROED, "Q2 D4", "free clusters count as zeroed ahead and are not zeroed")                \
    X(AHEAD_SETTLED, "Q23", "clusters zeroed ahead count as settled")                                   \
    X(AHEAD_IN_USE, "Q9 D4", "zeroing ahead goes on where the free space ends")                        \
    X(PROVE_BLIND, "Q9", "clusters that tables name count as proved free")                              \
    X(PROVE_DROPPED, "Q9 D3", "clusters that lose a reference while freedom is proved are not seen")    \
    X(PROVE_UNSPOILT, "Q9", "a proof counts although a table was used for something else meanwhile")   \
    X(COW_NO_TAIL, "Q2", "the part behind a partial write is not filled")                               \
    X(COW_UNORDERED, "Q2 Q23", "clusters filled by copying count as independent data")                  \
    X(L2_COPY_IN_PLACE, "Q5", "a shared L2 table is changed in place")                                  \
    X(L2_OLD_FREED_EARLY, "Q5", "the old L2 table is freed before its replacement is linked")           \
    X(SHARED_IN_PLACE, "Q4", "a shared cluster is overwritten in place")                                \
    X(SUB_LEFT_BEHIND, "Q2 Q4", "a new cluster does not take along the subclusters that the old one held") \
    X(SUB_UNORDERED, "Q1 Q2", "subclusters of a cluster that is kept count as independent data")         \
    X(SUB_LOCK_NARROW, "D2", "a new host cluster is linked under a lock of the touched subclusters alone") \
    X(GROW_KEEP_TABLES, "Q19", "growing: tables left by an interrupted shrink are not dropped")         \
    X(SHRINK_FREE_FIRST, "Q19", "shrinking: tables are freed before the size is durable")               \
    X(ZERO_NO_STAMP, "D3", "a kept zero cluster is filled while an old in-place writer is inside")     \
    X(COMMIT_EMPTY_EARLY, "J2", "commit empties the image before the one below is durable")              \
    X(REBASE_DROP_EARLY, "J3", "rebase drops what the new chain holds before the image names it")         \
    X(REBASE_ZERO_BELOW, "J3", "rebase leaves out zeros that only the old chain supplies")               \
    X(SNAP_COUNT_LATE, "Q13", "creating a snapshot: counts are raised after the header names it")         \
    X(SNAP_KEEP_COPIED, "Q13", "creating a snapshot: L2 entries keep their COPIED flags")               \
    X(SNAP_L1_COPIED, "Q13", "creating a snapshot: L1 entries keep their COPIED flags")                 \
    X(SNAP_CACHE_STAYS, "Q13 D2", "cached tables outlive a change of the tables on the disk")           \
    X(SNAP_APPLY_IN_PLACE, "Q14", "applying a snapshot: the L1 table is overwritten, with stale flags") \
    X(SNAP_STALE_COPIED, "Q14", "applying a snapshot: flags of the snapshot's tables are kept")         \
    X(SNAP_APPLY_FREE_FIRST, "Q14", "applying a snapshot: the old tree loses its owners before the switch") \
    X(SNAP_BITMAPS_LATE, "Q14 P4", "applying a snapshot: bitmaps become dirty after the switch")         \
    X(EXPAND_FREE_FIRST, "Q25", "zero clusters of snapshots: what they kept loses its owners before the tables")   \
    X(SNAP_FREE_FIRST, "Q15", "deleting a snapshot: its tree loses its owners before the switch")       \
    X(COMPRESSED_FREED_EARLY, "Q11 Q9", "a compressed cluster is freed before its replacement is linked durably") \
    X(COMPRESSED_UNORDERED, "Q11 Q2", "compressed clusters count as independent data")                  \
    X(PACK_NOT_COUNTED, "Q11 Q1", "a further compressed cluster in a host cluster is not counted")      \
    X(PACK_NOT_HELD, "Q11", "a host cluster that is being filled is not held for that")                 \
    X(CRYPT_KNOWN_ZERO, "Q23 D4", "fresh space of an encrypted image counts as known zero")              \
    X(BITMAP_MARK_LATE, "Q16", "bitmaps are marked in use after the first write")                       \
    X(DATA_FILE_LATE, "Q21", "an external data file is not flushed before the tables that name it") \
    X(DATA_FILE_UNFLUSHED, "Q21", "a guest flush does not flush the external data file")                \
    X(DATA_FILE_PUNCH_LATE, "Q9 Q21", "a punch in the data file does not hold off a rewrite of its clusters") \
    X(AMEND_WIDTH_LATE, "Q20", "the width of the counts is switched behind the table that has it")      \
    X(AMEND_LAZY_AT_ONCE, "Q12 Q20", "amend: lazy refcounts begin without the dirty bit")                  \
    X(AMEND_LAZY_LATE, "Q12 Q20", "amend: lazy refcounts end in the header before the counts are durable")  \
    X(AMEND_RAW_LATE, "Q20 Q21", "amend: entries say zero before the raw bit of the data file is gone")     \
    X(KEY_SLOT_EARLY, "Q26", "a key slot becomes active before its material is durable")                 \
    X(KEY_ERASE_FIRST, "Q26", "the material of a key slot is overwritten while the slot is active")       \
    X(KEY_NO_SPARE, "Q26", "an active key slot is written over without a second one")                    \
    X(KEY_STATE_FIRST, "Q26", "the sector with the state of a key slot goes first when it becomes active")  \
    X(KEY_SPARE_STAYS, "Q26", "a spare key slot that a crash has left is not known again")              \
    X(GENERATION_STAYS, "Q16 G.018", "a change that a bitmap records leaves the generation as it was")  \
    X(BITMAP_BITS_LATE, "P4", "a guest write does not wait for the bits that cover it")                 \
    X(BITMAP_NO_BITS, "P4", "bits are not written ahead, the claim is made all the same")               \
    X(BITMAP_TABLE_EARLY, "Q17", "a bitmap's table names a new cluster that is not yet durable")        \
    X(BITMAP_FLAG_EARLY, "Q17", "a bitmap is no longer in use before its exact bits are durable")       \
    X(BITMAP_SWITCH_EARLY, "Q17", "the extension names a directory that is not yet durable")            \
    X(BITMAP_AUTOCLEAR_EARLY, "Q17", "an extension across two sectors is rewritten while it counts")    \
    X(MOVE_NO_GRACE, "D3", "a cluster is moved while an old in-place writer is inside")                 \
    X(CLEAN_DIRTY, "Q1 Q2", "the sweep of the cache drops what is not on the disk yet")                 \
    X(MOVE_USERS, "D3 D2", "writes in place begin again while a held cluster is being replaced")        \
    X(MOVED_FREED_EARLY, "Q9", "the old place of a moved cluster is freed before the new one is linked durably") \
    X(MOVE_UNORDERED, "Q2", "the entry of a moved cluster does not ask for the data barrier")           \
    X(MOVE_TABLE_STALE, "Q5", "a moved L2 table is copied from the disk, without changes in memory")    \
    X(FOLD_SHOWS_BELOW, "1.054", "a cluster of zeros is unmapped although a backing image shows through") \
    X(LIVE_COMMIT_UNFLUSHED, "J2 J5", "live commit: images name the base before it is durable")          \
    X(MIRROR_UNFLUSHED, "J1 J5", "a mirror ends, and its users go over, without a flush of the target")    \
    X(MIRROR_ZEROS_SHORT, "J1", "a mirror of a part leaves zeros out that are to hide what comes to lie below")  \
    X(CBW_COPIED_EARLY, "J4", "a granule counts as copied before its old content is on the target")     \
    X(FORGET_TOP_FIRST, "J2", "live commit: the top gives a range up before the layers between do")      \
    X(ABSENT_BLIND, "J3", "stream: a write of what is absent does not look again when it may begin")    \
    X(RIDE_LEFT_BEHIND, "P2", "a copy leaves behind what others have written meanwhile")                  \
    X(RIDE_TOLD_EARLY, "P2", "who goes along with a copy is answered before it is linked")                \
    X(RIDE_FAILURE_HIDDEN, "P2", "who goes along with a copy that fails is answered as if it had not")     \
    X(RIDE_GAP_UNREAD, "P2", "a copy does not read what lies between its own write and those on board")    \
    X(SNAPSHOT_UNFLUSHED, "J5", "an overlay is put above a layer that is not durable")                    \
    X(SNAPSHOT_NAME_LATE, "J5", "an overlay names what lies below it after it is in use")                \
    X(QED_MARK_UNORDERED, "E1", "the need-check mark is set without a barrier")                       \
    X(QED_CLEAN_EARLY, "E4", "the need-check mark goes before the tables are durable and the end is cut")  \
    X(QED_LENGTH_LATE, "E3", "space counts as settled before the length of the file is durable")         \
    X(QED_SPARE_ZERO, "Q23 D4", "clusters that were given back count as known zero")                     \
    X(QED_COPY_LATE, "E1 E2 G.021", "repair: an entry is changed before the copy that it names is durable") \
    X(QED_REUSE_EARLY, "E1", "repair: the old place of what was moved is used before the new one is linked durably") \
    X(QED_MARK_EARLY, "E4", "the need-check mark goes before everything is repaired")                    \
    X(QED_MOVE_UNORDERED, "E1", "filling holes: the entry of a moved cluster does not ask for the data barrier")  \
    X(QED_MOVED_REUSED, "E1 D3", "filling holes: the old place is used again before the new one is linked durably") \
    X(QED_MOVE_TABLE_STALE, "E2", "filling holes: a table is copied without changes that are in memory alone") \
    X(QED_HOLES_FORGOTTEN, "E4", "the need-check mark goes although clusters in front of the end are lost")  \
    X(QED_NAME_LATE, "E6", "the header names another backing file before its name is durable")           \
    X(QED_EMPTY_EARLY, "E7", "emptying: space is given back before the L1 table is durable without its tables") \
    X(QED_MOVE_NO_GRACE, "D3", "filling holes: a cluster is moved while an old in-place writer is inside") \
    X(CREATE_OVER_HEADER, "Q28", "a new image is written over an old one whose header is still durable")  \
    X(CREATE_HEADER_EARLY, "Q28", "the header of a new image goes out before its tables are durable")    \
    X(CLONE_COUNT_LATE, "Q27", "cloning: the target's entries are durable before the counts of what they name")  \
    X(CLONE_FLAG_LATE, "Q27", "cloning: the target is linked before the source's cleared flags are durable") \
    X(CLONE_KEEP_COPIED, "Q27 Q4", "cloning: the source keeps its COPIED flags")                         \
    X(CLONE_NO_GRACE, "Q27 D3", "cloning: the target is linked while an old in-place writer of the source is inside") \
    X(CLONE_UNORDERED, "Q27 Q2", "cloning: the target's entries do not ask for the data barrier")        \
    X(CLONE_FREED_EARLY, "Q9", "cloning: what the target named is freed before the new entry is durable") \
    X(CLONE_SOURCE_UNLOCKED, "Q27", "cloning: the source is not locked while its entries are looked at and shared") \
    X(CLONE_FORGETS_FLAG, "Q27", "cloning: the last owner of a cluster does not get its flag at the close")  \
    X(CLONE_SETTLED_STAYS, "Q27", "an owner goes while the image says that no flag is missing")          \
    X(CLONE_UNSEEN_BITMAP, "C1", "cloning: bitmaps that record are not told")                           \
    X(CLONE_UNSEEN_WATCH, "C1", "cloning: clusters are shared although somebody watches the disk")      \
    X(CLONE_UNSEEN_FILTER, "C1", "cloning: clusters are shared below a filter that wants to see writes") \
    X(UNDER_FLUSH_STOPS, "D5 P2", "a flush of an image over a node does not go down to the node")       \
    X(FILTER_FLUSH_STOPS, "D5 P2", "a flush ends in a filter that has nothing to do for it")            \
    X(UNDER_GROWTH_ZERO, "Q23 D4", "what is gained below a format counts as known zero behind a crash") \
    X(EXT_AT_ONCE, "Q18", "a header extension is added in one write of several sectors")

enum byre_mutant_id {
    MUT_NONE = 0,
    MUT_AFTER_BARRIERS = MUT_BARRIERS_MAX,
#define X(name, rule, text) MUT_##name,
    BYRE_MUTANT_ROWS(X)
#undef X
    MUT_END
};

#ifdef BYRE_MUTANTS
/* Is this mutant alive? Notes that its place was reached. Defined by the mutant runner. */
int byre_mutant_alive(int id);
#define MUTANT(id) byre_mutant_alive(id)
#else
#define MUTANT(id) 0
#endif

#endif
