/* SPDX-License-Identifier: MIT
 *
 * create_rows.c: the options of creating and amending images, by format, one row each.
 *
 * Purpose      The tables behind -o, -o help, the line that is told before creation, and the options of blockdev-create and x-blockdev-amend.
 * Owns         constant tables
 * Invariants   I1 every row writes into struct fmt_create_opts, or is marked OPT_LATER
 * Concurrency  any thread
 * Failure      none
 * Tests        lib_test.c, job/create_test.c, tests/cli/create_test.py
 */
#include <string.h>

#include "fmt/create_rows.h"

static const struct opt_enum compat_names[] = { { "0.10", 2 }, { "v2", 2 }, { "1.1", 3 }, { "v3", 3 }, { NULL, 0 } };
static const struct opt_enum prealloc_names[] = {
    { "off", FMT_PREALLOC_OFF }, { "metadata", FMT_PREALLOC_METADATA }, { "falloc", FMT_PREALLOC_FALLOC }, { "full", FMT_PREALLOC_FULL }, { NULL, 0 }
};
static const struct opt_enum raw_prealloc_names[] = {
    { "off", FMT_PREALLOC_OFF }, { "falloc", FMT_PREALLOC_FALLOC }, { "full", FMT_PREALLOC_FULL }, { NULL, 0 }
};

#define AT(field) OPT_AT(struct fmt_create_opts, field)

/* Options of LUKS; p: what stands in front of their names. */
#define CRYPT_ROWS(p, h)                                                                                                    \
    { p "cipher-alg", 0, OPT_STR, AT(encrypt.cipher_alg), .help = h "cipher and bits of its key [aes-256]" },               \
    { p "cipher-mode", 0, OPT_STR, AT(encrypt.cipher_mode), .help = h "mode of the cipher (xts, cbc, ctr, ecb) [xts]" },    \
    { p "hash-alg", 0, OPT_STR, AT(encrypt.hash_alg), .help = h "hash for passphrases [sha256]" },                          \
    { p "iter-time", 0, OPT_UINT, AT(encrypt.iter_time_ms), .def = "2000", .max = 3600000, .help = h "milliseconds of work that a passphrase costs" }, \
    { p "ivgen-alg", 0, OPT_STR, AT(encrypt.ivgen_alg), .help = h "generator of initial vectors (plain, plain64, essiv) [plain64]" }, \
    { p "ivgen-hash-alg", 0, OPT_STR, AT(encrypt.ivgen_hash_alg), .help = h "hash of the generator essiv [sha256]" },       \
    { p "key-secret", 0, OPT_STR, AT(encrypt.key_secret), .help = h "id of the secret that holds the passphrase" },

#define QCOW2_ROWS                                                                                                          \
    { "backing_file", 0, OPT_STR, AT(backing_file), .help = "file name of the backing image" },                             \
    { "backing_fmt", 0, OPT_STR, AT(backing_fmt), .help = "format of the backing image" },                                  \
    { "cluster_size", 0, OPT_SIZE, AT(cluster_size), .def = "65536", .help = "unit of allocation, a power of two from 512 to 2M" }, \
    { "compat", 0, OPT_ENUM, AT(version), .def = "1.1", .names = compat_names, .help = "version of the format" },           \
    { "compression_type", 0, OPT_STR, AT(compression_type), .def = "zlib", .help = "how compressed clusters are packed, zlib or zstd" }, \
    { "data_file", 0, OPT_STR, AT(data_file), .help = "external file for the guest's data; it is made, or emptied" },        \
    { "data_file_raw", 0, OPT_BOOL, AT(data_file_raw), .help = "the external data file is a raw image of its own" },        \
    CRYPT_ROWS("encrypt.", "encryption: ")                                                                                  \
    { "encrypt.format", 0, OPT_STR, AT(encrypt.format), .help = "encryption: luks" },                                       \
    { "encryption", 0, OPT_BOOL, AT(encrypt.legacy), .help = "old spelling of encrypt.format=aes, which is refused" },            \
    { "extended_l2", 0, OPT_BOOL, AT(extended_l2), .help = "tables with 32 subclusters per cluster (cluster_size 16k or more)" }

#define FILE_ROWS                                                                                                           \
    { "extent_size_hint", 0, OPT_SIZE, AT(extent_size_hint), .def = "1M", .max = UINT32_MAX, .help = "hint to the file system for the size of extents, 0 for none" }, \
    { "nocow", 0, OPT_BOOL, AT(nocow), .help = "no copy-on-write by the file system (btrfs)" }

#define QCOW2_TAIL                                                                                                          \
    { "lazy_refcounts", 0, OPT_BOOL, AT(lazy_refcounts), .help = "mark the image dirty and write refcounts late" },         \
    { "preallocation", 0, OPT_ENUM, AT(prealloc), .names = prealloc_names, .help = "what to allocate at once" },            \
    { "refcount_bits", 0, OPT_UINT, AT(refcount_bits), .def = "16", .help = "width of a reference count" },                 \
    { "size", 0, OPT_SIZE, AT(size), .help = "virtual size of the disk" }

static const struct opt_row qcow2_rows[] = { QCOW2_ROWS, QCOW2_TAIL, OPT_END };
static const struct opt_row qcow2_file_rows[] = { QCOW2_ROWS, FILE_ROWS, QCOW2_TAIL, OPT_END };

/* Options that an image may get later (FEATURES 1.138..1.141). */
static const struct opt_enum key_states[] = { { "active", FMT_KEY_ACTIVE }, { "inactive", FMT_KEY_INACTIVE }, { NULL, 0 } };
/* Options of key slots. */
#define KEY_ROWS(p)                                                                                                         \
    { p "iter-time", 0, OPT_UINT, AT(encrypt.iter_time_ms), .max = 3600000, .help = "milliseconds of work that the new passphrase costs [2000]" }, \
    { p "keyslot", 0, OPT_UINT, AT(encrypt.keyslot), .help = "the key slot that changes, 0 to 7" },                         \
    { p "new-secret", 0, OPT_STR, AT(encrypt.new_secret), .help = "id of the secret that a key slot is given" },            \
    { p "old-secret", 0, OPT_STR, AT(encrypt.old_secret), .help = "id of the secret whose key slots are erased" },          \
    { p "secret", 0, OPT_STR, AT(encrypt.secret), .flags = OPT_HIDDEN, .help = "id of the secret that opens a key slot, if it is not the one that opened the image" }, \
    { p "state", 0, OPT_ENUM, AT(encrypt.state), .names = key_states, .help = "active: a key slot gets a secret, inactive: key slots are erased" }

static const struct opt_row luks_amend_rows[] = { KEY_ROWS(""), OPT_END };
static const struct opt_row qcow2_amend_rows[] = {
    KEY_ROWS("encrypt."),
    { "backing_file", 0, OPT_STR, AT(backing_file), .help = "refused: the backing image is changed by rebase" },
    { "backing_fmt", 0, OPT_STR, AT(backing_fmt), .help = "refused: the backing image is changed by rebase" },
    { "compat", 0, OPT_ENUM, AT(version), .names = compat_names, .help = "version of the format" },
    { "data_file", 0, OPT_STR, AT(data_file), .help = "name of the external data file; empty: none is recorded" },
    { "data_file_raw", 0, OPT_BOOL, AT(data_file_raw), .help = "the external data file stays a raw image; only off can be set" },
    { "lazy_refcounts", 0, OPT_BOOL, AT(lazy_refcounts), .help = "mark the image dirty and write refcounts late" },
    { "refcount_bits", 0, OPT_UINT, AT(refcount_bits), .help = "width of a reference count" },
    { "size", 0, OPT_SIZE, AT(size), .help = "virtual size of the disk" },
    OPT_END
};

static const struct opt_row raw_rows[] = {
    { "size", 0, OPT_SIZE, AT(size), .help = "virtual size of the disk" },
    OPT_END
};
static const struct opt_row raw_file_rows[] = {
    FILE_ROWS,
    { "preallocation", 0, OPT_ENUM, AT(prealloc), .names = raw_prealloc_names, .help = "what to allocate at once" },
    { "size", 0, OPT_SIZE, AT(size), .help = "virtual size of the disk" },
    OPT_END
};

#define DETACHED_ROW { "detached-header", 0, OPT_BOOL, AT(encrypt.detached), .help = "only a header is made, for a disk in another file" }
static const struct opt_row luks_rows[] = {
    CRYPT_ROWS("", "")
    DETACHED_ROW,
    { "size", 0, OPT_SIZE, AT(size), .help = "virtual size of the disk" },
    OPT_END
};
static const struct opt_row luks_file_rows[] = {
    CRYPT_ROWS("", "")
    DETACHED_ROW,
    FILE_ROWS,
    { "preallocation", 0, OPT_ENUM, AT(prealloc), .names = raw_prealloc_names, .help = "what to allocate at once" },
    { "size", 0, OPT_SIZE, AT(size), .help = "virtual size of the disk" },
    OPT_END
};

#define QED_ROWS                                                                                                            \
    { "backing_file", 0, OPT_STR, AT(backing_file), .help = "file name of the backing image" },                             \
    { "backing_fmt", 0, OPT_STR, AT(backing_fmt), .help = "format of the backing image; only raw is recorded" },            \
    { "cluster_size", 0, OPT_SIZE, AT(cluster_size), .def = "65536", .min = 4096, .max = 64u << 20, .help = "unit of allocation, a power of two from 4k to 64M" }
#define QED_TAIL                                                                                                            \
    { "size", 0, OPT_SIZE, AT(size), .help = "virtual size of the disk" },                                                  \
    { "table_size", 0, OPT_SIZE, AT(table_size), .def = "4", .min = 1, .max = 16, .help = "clusters of the L1 table and of each L2 table, a power of two from 1 to 16" }
static const struct opt_row qed_rows[] = { QED_ROWS, QED_TAIL, OPT_END };
static const struct opt_row qed_file_rows[] = { QED_ROWS, FILE_ROWS, QED_TAIL, OPT_END };

/* An upgrade in place. */
static const struct opt_row qed_amend_rows[] = {
    { "backing_fmt", 0, OPT_STR, AT(backing_fmt), .help = "format of the backing image, where it is not recorded" },
    { "format", 0, OPT_STR, AT(format), .help = "what the image becomes: qcow2" },
    OPT_END
};

static const struct { const char *format; const struct opt_row *plain, *with_file; } tables[] = {
    { "qcow2", qcow2_rows, qcow2_file_rows },
    { "raw", raw_rows, raw_file_rows },
    { "luks", luks_rows, luks_file_rows },
    { "qed", qed_rows, qed_file_rows },
};

const struct opt_row *fmt_create_rows(const char *format, bool with_file_options)
{
    for (size_t i = 0; i < sizeof tables / sizeof tables[0]; i++)
        if (strcmp(tables[i].format, format) == 0)
            return with_file_options ? tables[i].with_file : tables[i].plain;
    return NULL;
}

const struct opt_row *fmt_amend_rows(const char *format)
{
    return strcmp(format, "qcow2") == 0 ? qcow2_amend_rows : strcmp(format, "luks") == 0 ? luks_amend_rows
         : strcmp(format, "qed") == 0 ? qed_amend_rows : NULL;
}

static const char *const usual_order[] = { "encryption", "encrypt.format", "encrypt.key-secret", "encrypt.cipher-alg", "encrypt.cipher-mode", "encrypt.ivgen-alg",
                                     "encrypt.ivgen-hash-alg", "encrypt.hash-alg", "encrypt.iter-time", "cluster_size", "extended_l2", "preallocation", "compression_type", "size", "compat", "backing_file",
                                     "backing_fmt", "data_file", "data_file_raw", "lazy_refcounts", "refcount_bits", "nocow", "extent_size_hint", "key-secret", "cipher-alg",
                                     "cipher-mode", "ivgen-alg", "ivgen-hash-alg", "hash-alg", "iter-time", "detached-header", NULL };

/* The peer tells the options of each format in the order of its table. */
static const char *const qed_order[] = { "size", "backing_file", "backing_fmt", "cluster_size", "table_size", "nocow", "extent_size_hint", NULL };

const char *const *fmt_create_order(const char *format) { return strcmp(format, "qed") == 0 ? qed_order : usual_order; }
