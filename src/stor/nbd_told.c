/* SPDX-License-Identifier: MIT
 *
 * nbd_told.c: what a server says of a request that it refuses, and who is told (FEATURES G.047).
 *
 * Purpose      libnbd hands on the number of an error alone. Its text, and the offset that it is about, are read from the bytes of the answer while
 *              they still lie in the socket (nbd_conn.c), and told here: to whoever hears warnings, and to those who ask (stor_nbd_complaint).
 * Owns         The last complaint of a store.
 * Invariants   I1  What is told is printable and short, whatever the server sends (proto/nbd/nbd_complaint.h).
 *              I2  A server that complains of everything is told of once a second, unless it says something new, and of that no more than five
 *                  times a second: whoever hears may be slow, and a server may say something else each time.
 *              I3  Who asks for the reason of an error says since when the request was under way: what was said before that belongs to another one.
 * Order        None.
 * Concurrency  Any loop; the last complaint is guarded by the store's lock.
 * Failure      Without memory, or of an answer that is cut off, nothing is told; the request fails as it does anyway.
 * Tests        tests/interop/test_nbd_client_complaints.py
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "stor/nbd_priv.h"

#define TELL_NS UINT64_C(1000000000)
#define NEW_MOST 4u

static const char *name_of(enum nbdc_what what)
{
    static const char *const names[] = { [NBDC_READ] = "a read", [NBDC_WRITE] = "a write", [NBDC_FLUSH] = "a flush", [NBDC_ZERO] = "a write of zeros", [NBDC_TRIM] = "a discard",
        [NBDC_STATUS] = "a question for its blocks" };
    return names[what];
}

static void make_text(const struct nbdc_req *r, char *to, size_t room)
{
    char where[64] = "", place[48] = "";
    if (r->what != NBDC_FLUSH)
        snprintf(where, sizeof where, " of %" PRIu64 " bytes at offset %" PRIu64, r->len, r->off);
    if (r->said->has_off)
        snprintf(place, sizeof place, " (at offset %" PRIu64 ")", r->said->off);
    snprintf(to, room, "the server says of %s%s: %s%s", name_of(r->what), where, r->said->text[0] ? r->said->text : strerror(r->error), place);
}

void nbdc_complaint_tell(struct nbdc *n, const struct nbdc_req *r, uint64_t now)
{
    AUTOFREE char *whole = NULL;
    char text[STOR_NBD_COMPLAINT_MAX] = "";
    if (!r->said->text[0] && !r->said->has_off)
        return;                              /* the number says as much */
    make_text(r, text, sizeof text);
    pthread_mutex_lock(&n->lock);
    bool again = now < n->complained_ns + TELL_NS, tell = !again || (strcmp(r->said->text, n->complaint_words) != 0 && n->complaints_new < NEW_MOST);      /* I2 */
    n->complaints_new = !again ? 0 : n->complaints_new + tell;
    memcpy(n->complaint, text, sizeof text);
    snprintf(n->complaint_words, sizeof n->complaint_words, "%s", r->said->text);
    n->complaint_error = -r->error;
    n->complaint_ns = now;
    n->complained_ns = again ? n->complained_ns : now;
    pthread_mutex_unlock(&n->lock);
    if (!tell || !n->warn)
        return;
    if (asprintf(&whole, "%s: %s", n->s.name, text) < 0)
        whole = NULL;
    n->warn(n->warn_arg, whole ? whole : text);
}

bool stor_nbd_complaint(struct stor *s, int error, uint64_t since_ns, char ret[STOR_NBD_COMPLAINT_MAX])
{
    if (!stor_is_nbd(s))
        return false;
    struct nbdc *n = nbdc_of(s);
    pthread_mutex_lock(&n->lock);
    bool is = n->complaint[0] && (!error || error == n->complaint_error) && n->complaint_ns >= since_ns;      /* I3 */
    if (is)
        memcpy(ret, n->complaint, sizeof n->complaint);
    pthread_mutex_unlock(&n->lock);
    return is;
}
