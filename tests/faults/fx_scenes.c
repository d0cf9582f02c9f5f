/* SPDX-License-Identifier: MIT
 *
 * fx_scenes.c: the scenarios and the geometries.
 *
 * Purpose      Tables only.
 * Owns, Invariants, Order, Concurrency, Failure  None.
 * Tests        test_faults.py: their number, and runs of each.
 */
#include "fx.h"

#define K4 " c4k c4k-back "
#define PLAIN " c4k c4k-back c4k-data c512 c512-v2-back c64k sub-back device "
#define SNAPS " c4k c4k-back c512-v2-back c64k c512-wide lazy compressed snapshot holes device "
#define LUKS "luks luks-back "
#define FILES " snapshot compressed holes garbage "
#define QED4 "qed-4k qed-back "
#define QED QED4 "qed-64k "
#define TOO , .together = true

const struct cx_geometry fx_geometries[] = {
    { .name = "c4k", .cluster = 4096, .size = 131072, .refcount_bits = 16, .version = 3, .frontier = 16384 },
    { .name = "c4k-back", .cluster = 4096, .size = 131072, .refcount_bits = 16, .version = 3, .backing = true, .frontier = 16384 },
    { .name = "c4k-data", .cluster = 4096, .size = 131072, .refcount_bits = 16, .version = 3, .backing = true, .data_file = true, .frontier = 16384 },
    { .name = "c512", .cluster = 512, .size = 65536, .refcount_bits = 1, .version = 3, .frontier = 2048 },
    { .name = "c512-v2-back", .cluster = 512, .size = 65536, .refcount_bits = 16, .version = 2, .backing = true, .frontier = 2048 },
    { .name = "c64k", .cluster = 65536, .size = 196608, .refcount_bits = 16, .version = 3, .frontier = 65536 },
    { .name = "c512-wide", .cluster = 512, .size = 196608, .refcount_bits = 64, .version = 3, .frontier = 512 },
    { .name = "sub-back", .cluster = 32768, .size = 262144, .refcount_bits = 16, .version = 3, .backing = true, .sub = true, .frontier = 65536 },
    { .name = "device", .cluster = 4096, .size = 131072, .refcount_bits = 16, .version = 3, .device = 1 << 20, .frontier = 16384 },
    { .name = "device-back", .cluster = 512, .size = 65536, .refcount_bits = 16, .version = 3, .backing = true, .device = 192512, .frontier = 2048 },
    { .name = "lazy", .cluster = 512, .size = 65536, .refcount_bits = 16, .version = 3, .lazy = true, .frontier = 1024 },
    { .name = "lazy-4k", .cluster = 4096, .size = 131072, .refcount_bits = 16, .version = 3, .lazy = true, .frontier = 8192 },
    { .name = "snapshot", .cluster = 4096, .size = 131072, .refcount_bits = 16, .version = 3, .frontier = 8192, .image = "snapshot.qcow2" },
    { .name = "compressed", .cluster = 4096, .size = 131072, .refcount_bits = 16, .version = 3, .frontier = 8192, .image = "compressed.qcow2" },
    { .name = "holes", .cluster = 4096, .size = 131072, .refcount_bits = 16, .version = 3, .frontier = 4096, .image = "holes.qcow2" },
    { .name = "garbage", .cluster = 512, .size = 262144, .refcount_bits = 16, .version = 3, .frontier = 512, .image = "garbage.qcow2" },
    { .name = "luks", .cluster = 4096, .size = 131072, .refcount_bits = 16, .version = 3, .luks = true, .frontier = 16384 },
    { .name = "luks-back", .cluster = 512, .size = 65536, .refcount_bits = 16, .version = 3, .luks = true, .backing = true, .frontier = 2048 },
    { .name = "luks-sub", .cluster = 16384, .size = 131072, .refcount_bits = 16, .version = 3, .luks = true, .sub = true, .frontier = 16384 },
    { .name = "bitmap", .cluster = 4096, .size = 131072, .refcount_bits = 16, .version = 3, .frontier = 4096, .bitmap_region = 16384, .image = "bitmap.qcow2" },
    { .name = "qed-4k", .table = 2, .cluster = 4096, .size = 131072, .version = 3, .frontier = 16384 },
    { .name = "qed-back", .table = 1, .cluster = 4096, .size = 131072, .version = 3, .backing = true, .frontier = 16384 },
    { .name = "qed-64k", .table = 1, .cluster = 65536, .size = 196608, .version = 3, .frontier = 65536 },
    { .name = "qed-2m", .table = 1, .cluster = 2 << 20, .size = 262144, .version = 3, .frontier = 2 << 20 },
    { .name = "" },
};

const char *const fx_do_names[FX_DO_KINDS] = { "end", "create", "open read-only", "open", "read", "write", "pack", "zero", "unmap", "discard", "flush", "grow", "shrink", "amend", "check", "repair", "scrub", "compact", "keep", "apply", "drop", "bitmap", "key", "write state", "close", "faults" };

const struct fx_scene fx_scenes[] = {
    { "create", PLAIN "device-back c512-wide " LUKS QED, 0, false, 0, { { FX_FAULTS }, { FX_CREATE } } },
    { "open-ro", PLAIN FILES LUKS QED, 4, false, 0, { { FX_FAULTS }, { FX_OPEN_RO }, { FX_CLOSE } } },
    { "open-rw", PLAIN FILES LUKS QED, 4, false, 0, { { FX_FAULTS }, { FX_OPEN_RW }, { FX_CLOSE } } },
    { "read", PLAIN FILES QED, 6, true, 0, { { FX_OPEN_RO }, { FX_FAULTS }, { FX_READ }, { FX_READ } } },
    { "write-alloc", PLAIN "device-back c512-wide holes " LUKS "luks-sub " QED "qed-2m ", 0, false, 0, { { FX_OPEN_RW }, { FX_FAULTS }, { FX_WRITE, 5, 0, 1, 0 }, { FX_WRITE, 9, 1, 0, 2 }, { FX_FLUSH }, { FX_WRITE, 12, 0, 3, 0 }, { FX_FLUSH } } },
    { "write-reused", " holes garbage c4k ", 0, false, 0, { { FX_OPEN_RW }, { FX_FAULTS }, { FX_WRITE, 0, 1, 3, 0 }, { FX_WRITE, 26, 0, 1, 0 }, { FX_FLUSH } } },
    { "copy-on-write", " c4k-back device-back c512-v2-back sub-back compressed luks luks-back luks-sub ", 0, false, 0, { { FX_OPEN_RW }, { FX_FAULTS }, { FX_WRITE, 2, 1, 0, 1 }, { FX_WRITE, 3, 3, 2, 1 }, { FX_WRITE, 2, 0, 0, 1 }, { FX_FLUSH } } },
    { "write-in-place", PLAIN LUKS QED, 6, false, 0, { { FX_OPEN_RW }, { FX_FAULTS }, { FX_WRITE, 1, 0, 1, 0 }, { FX_WRITE, 0, 0, 0, 1 }, { FX_FLUSH } } },
    { "write-shared", " snapshot compressed ", 0, false, 0, { { FX_OPEN_RW }, { FX_FAULTS }, { FX_WRITE, 0, 0, 1, 0 }, { FX_WRITE, 4, 1, 0, 1 }, { FX_FLUSH }, { FX_DISCARD, 16, 0, 2, 0 }, { FX_FLUSH } } },
    { "zero", PLAIN FILES LUKS QED, 8, true, 0, { { FX_OPEN_RW }, { FX_FAULTS }, { FX_ZERO, 0, 0, 2, 0 }, { FX_UNMAP, 3, 0, 2, 0 }, { FX_ZERO, 6, 1, 1, 0 }, { FX_FLUSH } } },
    { "discard-rewrite", PLAIN FILES LUKS "device-back " QED, 8, false, 0, { { FX_OPEN_RW }, { FX_FAULTS }, { FX_DISCARD, 0, 0, 3, 0 }, { FX_FLUSH }, { FX_WRITE, 0, 0, 2, 0 }, { FX_DISCARD, 5, 0, 1, 0 }, { FX_WRITE, 5, 0, 1, 0 }, { FX_FLUSH } } },
    { "lazy", " lazy lazy-4k c64k ", 0, false, 0, { { FX_OPEN_RW }, { FX_FAULTS }, { FX_WRITE, 5, 0, 1, 0 }, { FX_WRITE, 9, 1, 0, 2 }, { FX_FLUSH }, { FX_DISCARD, 5, 0, 1, 0 }, { FX_FLUSH }, { FX_WRITE, 12, 0, 2, 0 }, { FX_CLOSE }, { FX_OPEN_RW }, { FX_WRITE, 5, 0, 1, 0 }, { FX_FLUSH } } },
    { "flush", PLAIN "snapshot " QED, 2, false, 0, { { FX_OPEN_RW }, { FX_WRITE, 0, 0, 1, 0 }, { FX_WRITE, 8, 0, 2, 0 }, { FX_FAULTS }, { FX_FLUSH }, { FX_FLUSH }, { FX_WRITE, 12, 0, 1, 0 }, { FX_FLUSH } } },
    { "grow", PLAIN "c512-wide snapshot holes " LUKS QED, 4, false, 0, { { FX_OPEN_RW }, { FX_WRITE, 7, 0, 1, 0 }, { FX_FAULTS }, { FX_GROW, 0, 0, 7, 0 }, { FX_WRITE, 1, 0, 1, 0 }, { FX_FLUSH } } },
    { "shrink", PLAIN "holes ", 30, false, 0, { { FX_OPEN_RW }, { FX_WRITE, 7, 0, 1, 0 }, { FX_FAULTS }, { FX_SHRINK, 0, 0, 7, 0 }, { FX_WRITE, 1, 0, 1, 0 }, { FX_FLUSH } } },
    { "amend-width", " c4k device c4k-back c512-v2-back c512-wide snapshot holes ", 6, true, 0, { { FX_OPEN_RW }, { FX_WRITE, 7, 0, 1, 0 }, { FX_FAULTS }, { FX_AMEND, 1, 0, 32, 0 }, { FX_WRITE, 9, 0, 1, 0 }, { FX_FLUSH } } },
    { "amend-version", " c4k c4k-back c64k c512-v2-back holes ", 6, true, 0,
      { { FX_OPEN_RW }, { FX_WRITE, 7, 0, 1, 0 }, { FX_ZERO, 1, 0, 2, 0 }, { FX_FAULTS }, { FX_AMEND, 0, 0, 3, 0 }, { FX_AMEND, 0, 0, 2, 0 }, { FX_WRITE, 9, 0, 1, 0 }, { FX_FLUSH } } },
    { "amend-snapshots", " c4k c4k-back c64k ", 6, true, 0,
      { { FX_OPEN_RW }, { FX_ZERO, 1, 0, 2, 0 }, { FX_ZERO, 4, 0, 1, 0 }, { FX_WRITE, 7, 0, 1, 0 }, { FX_FLUSH }, { FX_KEEP }, { FX_WRITE, 4, 0, 1, 0 }, { FX_ZERO, 7, 0, 1, 0 }, { FX_FLUSH }, { FX_KEEP, 1, 0, 0, 0 }, { FX_FAULTS }, { FX_AMEND, 0, 0, 2, 0 },
        { FX_WRITE, 9, 0, 1, 0 }, { FX_WRITE, 1, 1, 0, 1 }, { FX_FLUSH }, { FX_DROP }, { FX_CLOSE } } },
    { "close-frontier", PLAIN "snapshot " QED, 0, false, 0, { { FX_OPEN_RW }, { FX_WRITE, 0, 0, 1, 0 }, { FX_FLUSH }, { FX_WRITE, 2, 0, 1, 0 }, { FX_FAULTS }, { FX_CLOSE } } },
    { "check", PLAIN FILES QED, 8, true, 0, { { FX_FAULTS }, { FX_CHECK } } },
    { "check-leaky", K4 "c512-v2-back " QED4, 8, true, FX_LEAKY, { { FX_FAULTS }, { FX_CHECK } } },
    { "repair-leaky", K4 "c512-v2-back " QED4, 8, true, FX_LEAKY, { { FX_FAULTS }, { FX_REPAIR }, { FX_CHECK } } },
    { "repair-low-count", K4 "c512-v2-back ", 8, true, FX_LOW_COUNT, { { FX_FAULTS }, { FX_REPAIR } } },
    { "repair-sound", K4 "c512 snapshot " QED4, 8, true, 0, { { FX_FAULTS }, { FX_REPAIR } } },
    { "open-dirty", K4 QED4, 8, true, FX_DIRTY, { { FX_FAULTS }, { FX_OPEN_RW }, { FX_WRITE, 20, 0, 1, 0 }, { FX_CLOSE } } },
    { "reopen", PLAIN "snapshot " LUKS QED "qed-2m ", 2, false, 0, { { FX_OPEN_RW }, { FX_FAULTS }, { FX_WRITE, 4, 0, 1, 0 }, { FX_CLOSE }, { FX_OPEN_RW }, { FX_WRITE, 6, 1, 0, 3 }, { FX_DISCARD, 0, 0, 1, 0 }, { FX_CLOSE } } },
    { "at-once", K4 "device device-back c4k-data c512 c512-v2-back c512-wide snapshot holes " QED4, 6, true, 0,
      { { FX_OPEN_RW }, { FX_FAULTS }, { FX_WRITE, 10, 0, 1, 0 }, { FX_WRITE, 11, 1, 0, 2 TOO }, { FX_WRITE, 0, 0, 1, 0 TOO }, { FX_DISCARD, 2, 0, 1, 0 TOO }, { FX_FLUSH TOO }, { FX_WRITE, 14, 0, 2, 0 TOO },
        { FX_FLUSH TOO }, { FX_UNMAP, 4, 0, 1, 0 TOO }, { FX_WRITE, 2, 0, 1, 0 }, { FX_FLUSH TOO }, { FX_FLUSH } } },
    { "same-cluster", K4 "device c4k-data c64k snapshot " QED, 0, false, 0,
      { { FX_OPEN_RW }, { FX_FAULTS }, { FX_WRITE, 1, 0, 0, 1 }, { FX_WRITE, 1, 1, 0, 2 TOO }, { FX_WRITE, 1, 4, 0, 1 TOO }, { FX_FLUSH TOO }, { FX_FLUSH } } },
    { "pack", " c4k c4k-back c512 c512-v2-back c64k " "device compressed holes snapshot ", 4, false, 0, { { FX_OPEN_RW }, { FX_FAULTS }, { FX_PACK, 6, 0, 3, 0 }, { FX_PACK, 1, 0, 2, 0 }, { FX_FLUSH }, { FX_PACK, 7, 0, 3, 0 },
        { FX_WRITE, 8, 1, 0, 1 }, { FX_FLUSH }, { FX_DISCARD, 6, 0, 1, 0 }, { FX_READ }, { FX_PACK, 20, 0, 4, 0 }, { FX_FLUSH } } },
    { "pack-reopen", K4 "c512 compressed ", 0, false, 0, { { FX_OPEN_RW }, { FX_PACK, 2, 0, 6, 0 }, { FX_FLUSH }, { FX_FAULTS }, { FX_PACK, 3, 0, 2, 0 }, { FX_CLOSE }, { FX_OPEN_RW }, { FX_READ },
        { FX_PACK, 2, 0, 3, 0 }, { FX_ZERO, 5, 1, 0, 1 }, { FX_CLOSE } } },
    { "pack-at-once", K4 "c512 c512-v2-back compressed ", 4, false, 0, { { FX_OPEN_RW }, { FX_PACK, 10, 0, 4, 0 }, { FX_FAULTS }, { FX_PACK, 10, 0, 2, 0 }, { FX_PACK, 12, 0, 1, 0 TOO }, { FX_WRITE, 13, 0, 1, 0 TOO },
        { FX_FLUSH TOO }, { FX_PACK, 16, 0, 2, 0 TOO }, { FX_DISCARD, 0, 0, 2, 0 TOO }, { FX_FLUSH TOO }, { FX_PACK, 0, 0, 1, 0 }, { FX_FLUSH TOO }, { FX_FLUSH } } },
    { "many-tables", " c512-wide garbage c512 ", 0, false, 0, { { FX_OPEN_RW }, { FX_FAULTS }, { FX_WRITE, 0, 0, 100, 0 }, { FX_FLUSH }, { FX_WRITE, 150, 0, 120, 0 }, { FX_FLUSH } } },
    { "snap-create", SNAPS, 8, true, 0,
      { { FX_OPEN_RW }, { FX_WRITE, 3, 0, 2, 0 }, { FX_FLUSH }, { FX_FAULTS }, { FX_KEEP }, { FX_WRITE, 3, 0, 1, 0 }, { FX_FLUSH } } },
    { "snap-apply", SNAPS, 8, true, 0,
      { { FX_OPEN_RW }, { FX_FLUSH }, { FX_KEEP }, { FX_WRITE, 2, 0, 3, 0 }, { FX_WRITE, 12, 0, 1, 0 }, { FX_FLUSH }, { FX_FAULTS }, { FX_APPLY }, { FX_WRITE, 4, 0, 0, 1 }, { FX_FLUSH } } },
    { "snap-delete", SNAPS, 8, true, 0,
      { { FX_OPEN_RW }, { FX_FLUSH }, { FX_KEEP }, { FX_WRITE, 2, 0, 3, 0 }, { FX_DISCARD, 6, 0, 1, 0 }, { FX_FLUSH }, { FX_FAULTS }, { FX_DROP }, { FX_WRITE, 0, 0, 1, 0 }, { FX_FLUSH } } },
    { "snap-delete-old", " snapshot compressed ", 0, false, 0, { { FX_OPEN_RW }, { FX_FAULTS }, { FX_DROP, 1, 0, 0, 0 }, { FX_WRITE, 0, 0, 3, 0 }, { FX_FLUSH } } },
    { "bitmap-write", " bitmap c4k ", 0, false, 0, { { FX_FAULTS }, { FX_OPEN_RW }, { FX_WRITE, 10, 0, 1, 0 }, { FX_ZERO, 1, 0, 2, 0 }, { FX_FLUSH }, { FX_CLOSE },
        { FX_OPEN_RW }, { FX_WRITE, 20, 1, 0, 2 }, { FX_DISCARD, 2, 0, 2, 0 TOO }, { FX_CLOSE } } },
    { "bitmap-add", " bitmap device c4k c512 c4k-back ", 0, false, 0, { { FX_OPEN_RW }, { FX_WRITE, 3, 0, 1, 0 }, { FX_FAULTS }, { FX_BITMAP, 0, 0, 0, 0 }, { FX_WRITE, 6, 0, 1, 0 }, { FX_FLUSH },
        { FX_BITMAP, 1, 0, 0, 0 }, { FX_BITMAP, 2, 0, 0, 0 }, { FX_WRITE, 9, 0, 1, 0 }, { FX_CLOSE } } },
    { "bitmap-change", " bitmap c4k ", 0, false, 0, { { FX_OPEN_RW }, { FX_BITMAP, 0, 0, 0, 0 }, { FX_FAULTS }, { FX_WRITE, 3, 0, 1, 0 }, { FX_BITMAP, 3, 0, 0, 0 }, { FX_BITMAP, 4, 0, 0, 0 },
        { FX_WRITE, 6, 0, 1, 0 }, { FX_BITMAP, 5, 0, 0, 0 }, { FX_FLUSH }, { FX_BITMAP, 6, 0, 0, 0 }, { FX_CLOSE } } },
    { "bitmap-resize", " bitmap c4k ", 8, false, 0, { { FX_OPEN_RW }, { FX_BITMAP, 0, 0, 0, 0 }, { FX_WRITE, 3, 0, 1, 0 }, { FX_FAULTS }, { FX_GROW, 0, 0, 7, 0 }, { FX_WRITE, 1, 0, 1, 0 },
        { FX_WRITE, 37, 0, 2, 0 }, { FX_FLUSH }, { FX_CLOSE } } },
    { "bitmap-apply", " bitmap c4k c64k ", 8, false, 0, { { FX_OPEN_RW }, { FX_WRITE, 3, 0, 1, 0 }, { FX_BITMAP, 2, 0, 0, 0 }, { FX_FLUSH }, { FX_KEEP }, { FX_WRITE, 3, 0, 1, 0 }, { FX_WRITE, 6, 0, 2, 0 },
        { FX_FLUSH }, { FX_BITMAP, 0, 0, 0, 0 }, { FX_BITMAP, 6, 0, 0, 0 }, { FX_FAULTS }, { FX_APPLY }, { FX_WRITE, 1, 0, 1, 0 }, { FX_FLUSH }, { FX_CLOSE } } },
    { "bitmap-apply-size", " bitmap c4k ", 8, false, 0, { { FX_OPEN_RW }, { FX_BITMAP, 2, 0, 0, 0 }, { FX_WRITE, 3, 0, 1, 0 }, { FX_FLUSH }, { FX_KEEP }, { FX_GROW, 0, 0, 7, 0 }, { FX_WRITE, 3, 0, 1, 0 },
        { FX_WRITE, 35, 0, 2, 0 }, { FX_FLUSH }, { FX_BITMAP, 0, 0, 0, 0 }, { FX_BITMAP, 6, 0, 0, 0 }, { FX_FAULTS }, { FX_APPLY }, { FX_WRITE, 1, 0, 1, 0 }, { FX_FLUSH }, { FX_CLOSE } } },
    { "bitmap-remove", " bitmap c4k ", 0, false, 0, { { FX_OPEN_RW }, { FX_BITMAP, 0, 0, 0, 0 }, { FX_WRITE, 3, 0, 1, 0 }, { FX_FAULTS }, { FX_BITMAP, 7, 0, 0, 0 }, { FX_BITMAP, 1, 0, 0, 0 },
        { FX_WRITE, 1, 0, 1, 0 }, { FX_CLOSE } } },
    { "key-add", " luks luks-back luks-sub ", 4, false, 0, { { FX_OPEN_RW }, { FX_WRITE, 5, 0, 1, 0 }, { FX_FAULTS }, { FX_KEY }, { FX_WRITE, 1, 1, 0, 2 }, { FX_FLUSH }, { FX_CLOSE }, { FX_OPEN_RW } } },
    { "key-erase", " luks luks-back ", 4, false, 0, { { FX_OPEN_RW }, { FX_KEY }, { FX_FAULTS }, { FX_KEY, 1, 0, 0, 0 }, { FX_WRITE, 1, 0, 1, 0 }, { FX_CLOSE }, { FX_OPEN_RW }, { FX_READ } } },
    { "key-replace", " luks luks-back ", 4, false, 0, { { FX_OPEN_RW }, { FX_FAULTS }, { FX_KEY, 2, 0, 0, 0 }, { FX_WRITE, 1, 0, 1, 0 }, { FX_CLOSE }, { FX_OPEN_RW }, { FX_READ } } },
    { "key-two-sectors", " luks luks-back ", 4, false, 0, { { FX_OPEN_RW }, { FX_FAULTS }, { FX_KEY, 3, 0, 0, 0 }, { FX_WRITE, 1, 0, 1, 0 }, { FX_KEY, 4, 0, 0, 0 }, { FX_CLOSE }, { FX_OPEN_RW }, { FX_READ } } },
    { "key-snapshot", " luks luks-back ", 4, false, 0, { { FX_OPEN_RW }, { FX_FLUSH }, { FX_KEEP }, { FX_FAULTS }, { FX_KEY }, { FX_WRITE, 1, 0, 2, 0 }, { FX_KEY, 1, 0, 0, 0 }, { FX_FLUSH }, { FX_APPLY }, { FX_WRITE, 2, 0, 0, 1 }, { FX_FLUSH } } },
    { "vm-state", K4 "c512 c512-v2-back sub-back luks snapshot holes device ", 4, false, 0,
      { { FX_OPEN_RW }, { FX_FAULTS }, { FX_STATE, 0, 1, 2, 1 }, { FX_WRITE, 7, 0, 1, 0 }, { FX_STATE, 70, 0, 1, 0 }, { FX_FLUSH }, { FX_STATE, 1, 0, 0, 3 }, { FX_FLUSH } } },
    { "scrub-leaky", K4 "c512-v2-back " QED4, 8, true, FX_LEAKY,
      { { FX_OPEN_RW }, { FX_FAULTS }, { FX_SCRUB }, { FX_WRITE, 3, 0, 1, 0 TOO }, { FX_DISCARD, 0, 0, 1, 0 TOO }, { FX_WRITE, 20, 1, 0, 2 TOO }, { FX_FLUSH TOO }, { FX_WRITE, 24, 0, 1, 0 }, { FX_FLUSH } } },
    { "scrub", " c512 device c4k-data snapshot compressed bitmap lazy-4k " QED4, 6, true, 0,
      { { FX_OPEN_RW }, { FX_WRITE, 9, 0, 2, 0 }, { FX_FAULTS }, { FX_SCRUB }, { FX_WRITE, 3, 0, 1, 0 TOO }, { FX_DISCARD, 9, 0, 1, 0 TOO }, { FX_FLUSH TOO }, { FX_SCRUB }, { FX_CLOSE } } },
    { "compact", K4 "device c512 c512-v2-back c512-wide holes snapshot compressed luks luks-sub ", 6, true, 0,
      { { FX_OPEN_RW }, { FX_WRITE, 9, 0, 4, 0 }, { FX_DISCARD, 0, 0, 4, 0 }, { FX_FLUSH }, { FX_FAULTS }, { FX_COMPACT }, { FX_WRITE, 10, 1, 0, 2 }, { FX_WRITE, 3, 0, 1, 0 },
        { FX_DISCARD, 7, 0, 1, 0 }, { FX_FLUSH }, { FX_WRITE, 12, 0, 1, 0 }, { FX_FLUSH }, { FX_CLOSE } } },
    { "unclean", K4 "device c4k-data lazy-4k " QED4, 8, true, FX_UNCLEAN,
      { { FX_FAULTS }, { FX_OPEN_RW, 1, 0, 0, 0 }, { FX_SCRUB }, { FX_WRITE, 0, 1, 0, 2 TOO }, { FX_WRITE, 20, 0, 1, 0 TOO }, { FX_DISCARD, 2, 0, 1, 0 TOO }, { FX_FLUSH TOO }, { FX_WRITE, 4, 0, 1, 0 }, { FX_FLUSH },
        { FX_SCRUB }, { FX_CLOSE } } },
    { "unclean-bitmap", " bitmap c4k ", 4, false, FX_UNCLEAN,
      { { FX_OPEN_RW, 1, 0, 0, 0 }, { FX_FAULTS }, { FX_WRITE, 3, 0, 1, 0 }, { FX_SCRUB TOO }, { FX_BITMAP, 0, 0, 0, 0 }, { FX_WRITE, 9, 0, 1, 0 }, { FX_FLUSH }, { FX_SCRUB }, { FX_CLOSE } } },
    { NULL, NULL, 0, false, 0, { { FX_END } } },
};
