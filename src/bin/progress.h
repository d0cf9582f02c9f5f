/* SPDX-License-Identifier: MIT
 *
 * progress.h: following a job.
 */
#ifndef BIN_PROGRESS_H
#define BIN_PROGRESS_H

#include "bin/bin.h"

enum progress_form { PROGRESS_NONE, PROGRESS_AUTO, PROGRESS_PLAIN, PROGRESS_BAR, PROGRESS_JSON };
extern const struct opt_enum progress_forms[];

#define ROW_PROGRESS(T)                                                                                                     \
    { .short_name = 'p', .type = OPT_BOOL, OPT_AT(T, progress_on), .help = "show progress" },                               \
    { "progress", 0, OPT_ENUM, OPT_AT(T, progress), .names = progress_forms, .help = "show progress in this form (json: one object a line on standard error)" }

struct progress_opts {
    bool on;                    /* -p */
    int form;                   /* enum progress_form of --progress; NONE: not given */
    const char *unit;           /* "bytes", "clusters" */
};

/* Showing how far something is. */
struct progress_view {
    enum progress_form form;
    const char *unit;
    double start, last_shown;       /* seconds */
    double last_percent;
    bool line_open;
};
void progress_begin(struct progress_view *v, struct run *r, const struct progress_opts *o);
/* force: also when little has changed; end: the last time. */
void progress_show(struct progress_view *v, const struct byre_progress *p, bool force, bool end);
/* Ends a line that is overwritten again and again, before anything else is printed. */
void progress_close(struct progress_view *v);

/* Waits for the job, showing progress as asked; SIGUSR1 prints a line without being asked. SIGINT, SIGTERM and SIGHUP
 * cancel the job; progress_signal then tells which. Returns the job's result. */
int progress_wait(struct run *r, struct byre_job *job, const struct progress_opts *o, struct byre_err *err);
/* The same to the end, for a job that leaves an image readable when it is cancelled: frees the job, tells. what: "commit". Returns the
 * exit code: 0, 1, or 128 + the signal. */
int progress_finish(struct run *r, struct byre_job *job, const struct progress_opts *o, const char *what, struct byre_image *image);
/* Signal that cancelled a job, 0: none. */
int progress_signal(void);
/* From here on those signals only set progress_signal (before anything is made that would have to be removed). */
void progress_catch_signals(void);

#endif
