/* SPDX-License-Identifier: MIT
 *
 * streams.h: which first writes follow one another? Where small requests go on where one ended, the rest of a new cluster is better
 * written with the first of them, although it reads zero: the others then overwrite blocks, which costs a file system less than to
 * fill a hole piece by piece. Home loop of the image.
 */
#ifndef FMT_STREAMS_H
#define FMT_STREAMS_H

#include <stdbool.h>
#include <stdint.h>

#define FMT_STREAMS 4u                   /* as many at once are told apart */
/* Requests of up to this part of a cluster are small. */
#define FMT_STREAM_PART 8u

struct fmt_streams { uint64_t end[FMT_STREAMS]; unsigned next; };      /* where recent requests ended */

/* Does [off, end) go on where a recent request ended? Remembers where it ends itself. */
static inline bool fmt_streams_go_on(struct fmt_streams *s, uint64_t off, uint64_t end)
{
    for (unsigned i = 0; i < FMT_STREAMS; i++)
        if (s->end[i] == off && off) {
            s->end[i] = end;
            return true;
        }
    s->end[s->next++ % FMT_STREAMS] = end;
    return false;
}

#endif
