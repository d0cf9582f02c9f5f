/* SPDX-License-Identifier: MIT
 *
 * progress.c: progress of a job: percentage lines, a bar with rate and time left, JSON lines; signals.
 *
 * Purpose      The main thread waits for a job in short steps and shows how far it is.
 * Owns         the signal flags (the only mutable data of the command that is not on a stack)
 * Invariants   I1 handlers only set flags
 *              I2 a form that overwrites its line ends it before anything else is printed
 * Concurrency  main thread; handlers run there or on any thread
 * Failure      none of its own
 * Tests        tests/cli/progress_test.py
 */
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/json_out.h"
#include "base/size.h"
#include "bin/progress.h"

#define STEP_MS 100
#define PLAIN_MIN_PERCENT 1.0
#define BAR_WIDTH 30

const struct opt_enum progress_forms[] = { { "auto", PROGRESS_AUTO }, { "plain", PROGRESS_PLAIN }, { "bar", PROGRESS_BAR }, { "json", PROGRESS_JSON }, { NULL, 0 } };

#define AGAIN_S 1                        /* a second signal means something when so much has passed: one to the group and one to us are one */

static volatile sig_atomic_t usr1_seen, end_seen;
static double end_at;                    /* of the first one */

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* What the work waits for may never come: a second one ends the program at once, as SIGKILL would. */
static void on_signal(int sig)
{
    if (sig == SIGUSR1) {
        usr1_seen = 1;
        return;
    }
    double now = now_s();
    if (end_seen && now - end_at >= AGAIN_S)
        _exit(128 + sig);
    if (!end_seen)
        end_at = now;
    end_seen = sig;
}

int progress_signal(void)
{
    return end_seen;
}

void progress_catch_signals(void)
{
    static const int signals[] = { SIGUSR1, SIGINT, SIGTERM, SIGHUP };
    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++) {
        struct sigaction old, sa = { .sa_handler = on_signal, .sa_flags = SA_RESTART };
        sigfillset(&sa.sa_mask);                 /* one at a time */
        if (sigaction(signals[i], NULL, &old) == 0 && (signals[i] == SIGUSR1 || old.sa_handler != SIG_IGN))
            sigaction(signals[i], &sa, NULL);
    }
}

static double percent_of(const struct byre_progress *p)
{
    if (!p->total)
        return 0;
    return p->done >= p->total ? 100.0 : (double)p->done * 100.0 / (double)p->total;
}

static void show_plain(struct progress_view *v, double percent)
{
    printf("    (%3.2f/100%%)\r", percent);
    fflush(stdout);
    v->line_open = true;
}

static void format_eta(double s, char out[16])
{
    if (s < 0 || s > 359999)
        snprintf(out, 16, "--:--");
    else if (s >= 3600)
        snprintf(out, 16, "%d:%02d:%02d", (int)s / 3600, (int)s / 60 % 60, (int)s % 60);
    else
        snprintf(out, 16, "%02d:%02d", (int)s / 60, (int)s % 60);
}

static void show_bar(struct progress_view *v, const struct byre_progress *p, double now)
{
    char bar[BAR_WIDTH + 1], rate[SIZE_TEXT_MAX], eta[16], elapsed[16];
    double percent = percent_of(p), spent = now - v->start, per_s = spent > 0.05 ? (double)p->done / spent : 0;
    int full = (int)(percent * BAR_WIDTH / 100.0);
    memset(bar, '.', BAR_WIDTH);
    memset(bar, '#', (size_t)full);
    bar[BAR_WIDTH] = 0;
    format_eta(per_s > 0 ? (double)(p->total - (p->done < p->total ? p->done : p->total)) / per_s : -1, eta);
    format_eta(spent, elapsed);
    if (strcmp(v->unit, "bytes") == 0)
        size_format((uint64_t)per_s, rate);
    else
        snprintf(rate, sizeof rate, "%.0f", per_s);
    printf("\r[%s] %6.2f %%  %s%s%s/s  %s, left %s\033[K", bar, percent, rate, strcmp(v->unit, "bytes") ? " " : "",
           strcmp(v->unit, "bytes") ? v->unit : "", elapsed, eta);
    fflush(stdout);
    v->line_open = true;
}

static void show_json(struct progress_view *v, const struct byre_progress *p, double now, bool end)
{
    struct json_out j;
    double spent = now - v->start, per_s = spent > 0.05 ? (double)p->done / spent : 0;
    json_out_init(&j, false);
    jo_open_obj(&j, NULL);
    jo_str(&j, "event", end ? "end" : "progress");
    jo_str(&j, "unit", v->unit);
    jo_u64(&j, "done", p->done);
    jo_u64(&j, "total", p->total);
    jo_double(&j, "percent", percent_of(p));
    jo_double(&j, "rate", per_s);
    jo_double(&j, "elapsed", spent);
    if (per_s > 0 && p->total >= p->done)
        jo_double(&j, "eta", (double)(p->total - p->done) / per_s);
    else
        jo_null(&j, "eta");
    jo_close(&j);
    if (!json_out_error(&j))
        fprintf(stderr, "%s\n", j.text);
    json_out_fini(&j);
}

void progress_show(struct progress_view *v, const struct byre_progress *p, bool force, bool end)
{
    double now = now_s(), percent = percent_of(p);
    bool plain = v->form == PROGRESS_PLAIN;
    if (v->form == PROGRESS_NONE || (!force && (plain ? percent - v->last_percent < PLAIN_MIN_PERCENT : now - v->last_shown < 0.2)))
        return;
    if (plain)
        show_plain(v, end ? 100.0 : percent);
    else if (v->form == PROGRESS_BAR)
        show_bar(v, p, now);
    else
        show_json(v, p, now, end);
    v->last_percent = percent;
    v->last_shown = now;
}

void progress_close(struct progress_view *v)
{
    if (v->line_open)
        printf("\n");
    v->line_open = false;
}

static void show(struct progress_view *v, const struct byre_job *job, bool force, bool end)
{
    struct byre_progress p;
    byre_job_progress(job, &p);
    progress_show(v, &p, force, end);
}

static void react(struct progress_view *v, struct byre_job *job)
{
    if (usr1_seen) {
        struct byre_progress p;
        usr1_seen = 0;
        byre_job_progress(job, &p);
        fprintf(stderr, "    (%3.2f/100%%)\n", percent_of(&p));
    }
    if (end_seen)
        byre_job_cancel(job);
    show(v, job, false, false);
}

static enum progress_form choose(struct run *r, const struct progress_opts *o)
{
    enum progress_form form = (enum progress_form)o->form;
    if (form == PROGRESS_NONE && o->on)
        form = PROGRESS_AUTO;
    if (form == PROGRESS_AUTO)
        form = !r->peer && isatty(STDOUT_FILENO) ? PROGRESS_BAR : PROGRESS_PLAIN;
    return form;
}

void progress_begin(struct progress_view *v, struct run *r, const struct progress_opts *o)
{
    *v = (struct progress_view){ .form = choose(r, o), .unit = o->unit, .start = now_s(), .last_percent = -PLAIN_MIN_PERCENT };
}

int progress_wait(struct run *r, struct byre_job *job, const struct progress_opts *o, struct byre_err *err)
{
    struct progress_view v;
    int rc;
    progress_begin(&v, r, o);
    progress_catch_signals();
    show(&v, job, true, false);
    while ((rc = byre_job_wait(job, STEP_MS, err)) == -ETIMEDOUT)
        react(&v, job);
    if (rc >= 0)
        show(&v, job, true, true);
    progress_close(&v);
    return rc;
}

int progress_finish(struct run *r, struct byre_job *job, const struct progress_opts *o, const char *what, struct byre_image *image)
{
    struct byre_err err;
    int rc = progress_wait(r, job, o, &err);
    byre_job_free(job);
    if (rc && progress_signal()) {
        (void)run_fail(r, "the %s was cancelled; '%s' reads as before", what, byre_filename(image));     /* the code is the signal */
        return 128 + progress_signal();
    }
    return rc ? run_fail_err(r, &err) : 0;
}
