/* SPDX-License-Identifier: MIT
 *
 * fx_luks.h: encrypted images: two passphrases, and which of them open the image.
 */
#ifndef FX_LUKS_H
#define FX_LUKS_H

#include "fmt/fmt.h"

enum { FX_KEY_A = 1u, FX_KEY_B = 2u };
extern const char *const fx_key_names[2];   /* ids in fx_secrets() */
struct secret_set *fx_secrets(void);        /* for the life of the program */
/* Creation: encrypted, opened by the first passphrase. */
void fx_luks_options(struct fmt_create_opts *o);
/* Where the header lies in a file; it begins a cluster. */
#define FX_LUKS_MATERIAL 1024u              /* of the first slot, from there */
uint64_t fx_luks_find(const uint8_t *file, uint64_t len, uint64_t cluster);
/* Tries both passphrases on every active slot: which of them open one, and how many slots are opened by none. */
struct fx_keys { unsigned opens, dead; };
MUST_USE int fx_luks_look(struct co *co, struct stor *s, uint64_t base, struct fx_keys *ret);
/* Key memory in use (secret_new of the engine). */
extern long fx_key_memory;

#endif
