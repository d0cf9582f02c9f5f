/* SPDX-License-Identifier: MIT
 *
 * endian.h: integers as they lie on disk or wire. Byte arrays of alignment 1: no arithmetic, no swapping in
 * place. A value must be taken out with _get and put in with _put.
 */
#ifndef BASE_ENDIAN_H
#define BASE_ENDIAN_H

#include <stdint.h>
#include <string.h>

typedef struct { uint8_t b[2]; } be16;
typedef struct { uint8_t b[4]; } be32;
typedef struct { uint8_t b[8]; } be64;
typedef struct { uint8_t b[2]; } le16;
typedef struct { uint8_t b[4]; } le32;
typedef struct { uint8_t b[8]; } le64;

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define BASE_BE(n, v) __builtin_bswap##n(v)
#define BASE_LE(n, v) (v)
#else
#define BASE_BE(n, v) (v)
#define BASE_LE(n, v) __builtin_bswap##n(v)
#endif

#define BASE_DEF(T, U, CONV)                                                                      \
    static inline U T##_get(const T *p) { U v; memcpy(&v, p->b, sizeof v); return (U)CONV(v); }   \
    static inline void T##_put(T *p, U x) { U v = (U)CONV(x); memcpy(p->b, &v, sizeof v); }
#define BASE_BE16(v) BASE_BE(16, v)
#define BASE_BE32(v) BASE_BE(32, v)
#define BASE_BE64(v) BASE_BE(64, v)
#define BASE_LE16(v) BASE_LE(16, v)
#define BASE_LE32(v) BASE_LE(32, v)
#define BASE_LE64(v) BASE_LE(64, v)
BASE_DEF(be16, uint16_t, BASE_BE16)
BASE_DEF(be32, uint32_t, BASE_BE32)
BASE_DEF(be64, uint64_t, BASE_BE64)
BASE_DEF(le16, uint16_t, BASE_LE16)
BASE_DEF(le32, uint32_t, BASE_LE32)
BASE_DEF(le64, uint64_t, BASE_LE64)

/* A table entry that was loaded as one word in disk order (DESIGN D2). */
static inline uint64_t be64_word(uint64_t disk_word) { return BASE_BE64(disk_word); }
static inline uint64_t le64_word(uint64_t disk_word) { return BASE_LE64(disk_word); }

#endif
