/* SPDX-License-Identifier: MIT
 *
 * story.h: a whole graph in use, with jobs, from a seed.
 *
 * A story is a list of letters. Each is something that an operator asks of a disk in use: an external snapshot, a commit, a stream, a mirror, a
 * backup, bitmaps, a transaction, a resize, a verb for one of the jobs. He asks in the words of the control protocol (src/ctl), while guests read, write, zero, discard and
 * flush. What a letter means is settled when its turn comes (which layer, which file), so letters can be left out of a story and the others
 * still make sense.
 *
 *   story.c          files, letters, and a story as a whole
 *   story_run.c      guests, what they were told, the end
 *   story_tell.c     the operator: letters become commands
 *   story_keep.c     the disk of one moment, which somebody reads while guests write: copy-before-write, snapshot-access, fleecing
 *   story_judge.c    what a power cut may have left: is it what was promised?
 *   byre_stories.c   the program: seeds, cuts, faults, letters left out
 *
 * Invariants
 *   S1  The same seed, letters and faults give the same trace (RG10).
 *   S2  What guests were told is in the model from the moment they were told.
 *   S3  Where the disk is to be found after a cut follows from what the operator was told: the last snapshot that he asked for, if its overlay names
 *       something, and the target of a mirror from its event on.
 *   S4  Who reads the disk of one moment finds in each sector, each time, one and the same value: of those that it could have then.
 * Concurrency  One thread; two simulated loops.
 */
#ifndef SIM_STORY_H
#define SIM_STORY_H

#include <jansson.h>

#include "graph/runtime.h"
#include "job/job.h"
#include "sim/explorer.h"
#include "sim/seen.h"

#define STORY_FILES 10u
#define STORY_CHAIN 4u                   /* the first files: the chain in the beginning, the deepest first */
#define STORY_SECTORS 384u               /* of the disk in the beginning */
#define STORY_SECTORS_MAX 512u
#define STORY_LETTERS_MAX 32u
#define STORY_JOBS 3u
#define STORY_GUESTS 3u
#define STORY_EVENTS_MAX 96u
#define STORY_COPIES_MAX 8u
#define STORY_VALUES 12u
#define STORY_READERS 2u
/* From so many hundred thousand on, seeds are those of stories that keep disks: guests come in by a filter, KEEP is told, mirrors of a part of the disk
 * go over to their targets, too. Then come plain ones again, and so on. */
#define STORY_KEEPING 100000u

/* X(kind, word, weight in stories, and in those that keep disks) */
#define STORY_LETTER_ROWS(X)                                                                               \
    X(SNAPSHOT, "snapshot", 5, 4) X(COMMIT, "commit", 6, 4) X(ACTIVE, "active", 3, 3) X(STREAM, "stream", 4, 3)         \
    X(MIRROR, "mirror", 5, 9) X(BACKUP, "backup", 5, 4) X(VERB, "verb", 8, 4) X(CHANGE, "change", 2, 1)                 \
    X(BITMAP, "bitmap", 4, 1) X(TRANSACTION, "transaction", 4, 5) X(RESIZE, "resize", 2, 1) X(WAIT, "wait", 5, 6)       \
    X(JOIN, "join", 7, 9) X(SCRUB, "scrub", 1, 1) X(COMPACT, "compact", 1, 1) X(KEEP, "keep", 0, 12)

enum story_kind {
#define X(name, word, ...) STORY_##name,
    STORY_LETTER_ROWS(X)
#undef X
    STORY_KINDS
};
const char *story_word(enum story_kind k);

struct story_letter { enum story_kind kind; bool out; uint32_t a, b, c; };      /* out: it is left out */

/* From the stamp on the disk is in file `home`; with `maybe` (a file, or STORY_FILES) in that one, if it names something below it. */
struct story_event { uint64_t stamp; unsigned home, maybe; };

/* From the stamp on (0: not yet, or not any more) the file is a copy of the disk of one moment: each sector holds one of these. */
struct story_copy {
    uint64_t from, until;
    unsigned file;
    bool partial;                        /* not all of the disk: a sector may also be zeros, but for those that it must have */
    bool must[STORY_SECTORS_MAX];
    uint64_t sectors;
    uint8_t count[STORY_SECTORS_MAX];    /* 0: anything, there were too many */
    uint32_t gens[STORY_SECTORS_MAX][STORY_VALUES];
};

/* A full backup that increments are made to, and the bitmap STORY_BITMAP_NAME that began with it: from one stamp to the other what the bitmap does not
 * say is in the file as it is on the disk (P4). */
#define STORY_BITMAP_NAME "inc"
struct story_pair { bool wanted; uint64_t from, until; unsigned file; char node[16]; };

struct story_job {
    char id[8];                          /* "": the place is free */
    enum story_kind kind;
    bool told_to_end, concluded, grouped;
    bool partial;                        /* its target gets a part of the disk: nobody goes over to it */
    bool goes;                           /* its target gets a part of the disk, has the rest already, and takes the disk's place */
    bool endless;                        /* a backup that keeps what is overwritten, until it is cancelled */
    uint64_t asked;                      /* the stamp of the verb that ends it; 0: none yet */
    size_t note, copy_note;              /* of the trace: when it had begun; when its copy began */
    unsigned file, events;               /* of the target; st->events when it began: later ones say that the disk is another node */
    int result;
    struct story_copy *copy;             /* of a backup that is whole when it ends well */
    bool begins_pair;
};

struct story;
struct story_reader { struct story *st; unsigned id; };
/* The disk of one moment: by a filter with a target of its own, or by the job `id` whose target lies over the disk. */
struct story_keep {
    bool on, ending;                     /* ending: nobody reads it any more */
    bool may_discard, taken;             /* readers discard parts of it; a job does */
    char id[8];                          /* "": a filter */
    char temp[16], filter[16], view[16]; /* nodes */
    unsigned file;                       /* of temp, which is used again for the next one; STORY_FILES: none yet */
    struct graph_node *node;             /* attachment of the readers */
    struct story_copy held;
    uint8_t going[STORY_SECTORS_MAX];    /* so many discards of it are under way, or have failed */
    bool gone[STORY_SECTORS_MAX];
    bool enough;
    struct co_group readers;
    struct story_reader reader[STORY_READERS];
};
struct story_guest { struct story *st; unsigned id; };

struct story {
    uint64_t seed;
    struct story_letter letter[STORY_LETTERS_MAX];
    unsigned letters;
    bool loud;                           /* commands and events go to standard error */
    struct sim_faults faults;            /* of the run; afterwards with what they counted */

    struct sim_world *w;
    struct sim_trace trace;
    struct prng p;                       /* of the plan */
    struct fmt_create_opts how[STORY_FILES];
    uint8_t *first[STORY_FILES];         /* files before the run */
    uint64_t first_len[STORY_FILES];
    uint32_t first_gens[STORY_SECTORS_MAX];

    /* the run */
    struct graph *g;
    struct graph_node *disk;             /* attachment of the guests */
    struct ctl *ctl;
    struct jobs js;
    void (*ctl_status)(void *arg, const struct job *job);
    void (*ctl_io_error)(void *arg, const struct job *job, bool read, const char *what);
    void *ctl_arg;
    struct sim_model now;                /* what guests were told, so far */
    struct prng op;                      /* of the operator */
    struct co_group guests;
    struct story_guest guest[STORY_GUESTS];
    bool enough;                         /* guests end */
    bool keeps;                          /* STORY_KEEPING */
    struct story_keep keep;
    uint64_t looks;                      /* sectors that somebody has read of a disk of one moment */
    bool used[STORY_FILES];
    uint32_t id, gen, names;
    struct story_job job[STORY_JOBS];
    struct story_event event[STORY_EVENTS_MAX];
    unsigned events;
    struct story_copy *copy[STORY_COPIES_MAX];
    unsigned copies;
    struct story_pair pair;
    unsigned increments, parts;          /* parts: copies of a part of the disk that ended well */
    unsigned gone;                       /* mirrors of a part of the disk that went over to their targets */
    unsigned told[STORY_KINDS], refused[STORY_KINDS], done[STORY_KINDS], ended_badly[STORY_KINDS];

    /* judging */
    struct sim_model model;              /* follows the cut */
    struct sim_seen *sound;              /* files that were found sound, by their hashes */
    uint64_t states, again, second;      /* second: of those, states behind a second power cut */
    uint64_t bitmaps;                    /* that said something and were compared */
    char why[700];                       /* what is wrong, "": nothing */
};

/* ---- story.c ---- */
/* st: seed, letters (0: they come from the seed), loud, faults are set, the rest is 0. 0; 2: the test itself is broken. */
MUST_USE int story_new(struct story *st);
void story_free(struct story *st);
const struct fmt_ops *story_format(const struct story *st, unsigned file);
const char *story_name(unsigned file);           /* "f3" */
unsigned story_file_of(const struct graph_node *n);
struct sim_disk *story_disk(const struct story *st, unsigned file);
void story_put(struct story *st);                /* files as in the beginning */
/* -1, and why: the first time counts. */
int story_wrong(struct story *st, const char *fmt, ...) PRINTF_LIKE(2, 3);
void story_say(const struct story *st, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* ---- story_run.c ---- */
/* Records the story. 0; -1: why says what is wrong. */
MUST_USE int story_run(struct story *st);
struct sim_note *story_note(struct story *st, enum sim_note_kind kind, uint32_t id);
void story_noted(struct story *st, const struct sim_note *n);            /* it is filled in */
void story_home(struct story *st, unsigned home, unsigned maybe);

/* ---- story_tell.c ---- */
MUST_USE int story_tell(struct co *co, struct story *st, const struct story_letter *l);
/* All jobs come to an end. */
MUST_USE int story_finish(struct co *co, struct story *st);
void story_job_status(void *arg, const struct job *job);
void story_io_error(void *arg, const struct job *job, bool read, const char *what);
struct graph_node *story_top(const struct story *st);
/* Takes args over. 0, or why it was refused. */
MUST_USE int story_ask(struct co *co, struct story *st, const char *command, json_t *args);
/* A file that nobody has used yet. image: one that can be an overlay. STORY_FILES: none. */
unsigned story_fresh_file(const struct story *st, uint32_t pick, bool image);
/* Opens a file, as long as the disk. below: what lies below it, NULL: nothing. name: of 16 bytes, gets its name. */
MUST_USE int story_add_node(struct co *co, struct story *st, unsigned file, const struct graph_node *below, char *name);
void story_drop_node(struct co *co, struct story *st, const char *name);
struct story_job *story_place(struct story *st, const char *id);
/* NULL: all places are taken. */
struct story_job *story_new_job(struct co *co, struct story *st, enum story_kind kind);
/* And what it writes to: an image in a file that nobody has used; its node is `name`. NULL: the files are all used, too, or it does not open. */
struct story_job *story_new_target(struct co *co, struct story *st, enum story_kind kind, uint32_t pick, unsigned *ret_file, char *name);
json_t *story_job_options(json_t *o, const struct story_job *j, const struct story_letter *l);
MUST_USE int story_start(struct co *co, struct story *st, struct story_job *j, const char *command, json_t *o);
/* What the disk can hold now. To be told story_copy_taken. */
size_t story_copy_now(struct story *st, struct story_copy *c);
/* A copy in `file` of the disk as it is at some moment from now on. NULL: there are enough. */
struct story_copy *story_copy_begin(struct story *st, unsigned file, size_t *ret_note);
/* To this moment: what was written meanwhile may be in it (T2 of story_tell.c). */
void story_copy_taken(struct story *st, struct story_copy *c, size_t note);

/* ---- story_keep.c ---- */
MUST_USE int story_keep(struct co *co, struct story *st, const struct story_letter *l);
/* `node` is the target of the job, and lies over the disk. held: what it shows. */
MUST_USE int story_keep_job(struct story *st, const struct story_job *j, const char *node, const struct story_copy *held);
/* Readers of what a job keeps end with it. */
void story_keep_look(struct co *co, struct story *st);
/* It ends, when there is one: nobody else needs it. */
void story_keep_end(struct co *co, struct story *st);

/* ---- story_judge.c ---- */
/* Files as they are now, of a run that has ended: everything is durable. */
MUST_USE int story_judge_end(struct story *st);
/* A sample of all power cuts: one point in one_in, and all promises; `each` states at a point. */
MUST_USE int story_judge_cuts(struct story *st, unsigned one_in, unsigned each);
MUST_USE int story_judge_one(struct story *st, const char *text);

#endif
