/* SPDX-License-Identifier: MIT
 *
 * pr_codec.h: requests to a helper that sends the SCSI commands PERSISTENT RESERVE IN and OUT for programs that may not, and its answers. Pure.
 *
 * The protocol is that of QEMU's pr-helper (its document docs/interop/pr-helper.rst); all numbers are big-endian:
 *
 *     the helper    4 bytes: what it offers beyond this
 *     the client    4 bytes: what of that it wants; here nothing is known, so 0
 *     the client    16 bytes of CDB, with a descriptor of the device; behind it, for OUT, as many bytes of parameters as the CDB says
 *     the helper    4 bytes SCSI status, 4 bytes length, 96 bytes of sense data (which mean something for CHECK CONDITION), and so many bytes of data
 *
 * There is data for IN with status GOOD alone, and never more than the CDB allows. There is one command at a time. Layouts of CDBs, parameters and data:
 * SCSI Primary Commands (SPC-4), PERSISTENT RESERVE IN and OUT.
 */
#ifndef PROTO_PR_CODEC_H
#define PROTO_PR_CODEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cursor.h"
#include "base/err.h"

#define PRP_FEATURES_BYTES 4u
#define PRP_CDB_BYTES 16u
#define PRP_PARAMETER_BYTES 24u
#define PRP_REQUEST_MAX (PRP_CDB_BYTES + PRP_PARAMETER_BYTES)
#define PRP_SENSE_BYTES 96u
#define PRP_HEAD_BYTES (4u + 4u + PRP_SENSE_BYTES)
#define PRP_DATA_MAX 8192u                 /* the protocol's limit */

enum { PRP_GOOD = 0x00, PRP_CHECK_CONDITION = 0x02, PRP_RESERVATION_CONFLICT = 0x18 };

enum prp_in { PRP_READ_KEYS, PRP_READ_RESERVATION, PRP_REPORT_CAPABILITIES, PRP_READ_FULL_STATUS };
enum prp_out { PRP_REGISTER, PRP_RESERVE, PRP_RELEASE, PRP_CLEAR, PRP_PREEMPT, PRP_PREEMPT_AND_ABORT, PRP_REGISTER_AND_IGNORE };

struct prp_request {
    bool out;
    unsigned action;                       /* enum prp_in, or prp_out */
    /* of OUT: */
    unsigned type;                         /* of the reservation, as SPC counts them; its scope is the logical unit, there is no other */
    uint64_t key, action_key;              /* the "reservation key" and the "service action reservation key" */
    bool aptpl, all_ports;                 /* registrations outlive a loss of power; hold at all target ports */
};
/* Returns its bytes: CDB, and parameters behind it. IN asks for PRP_DATA_MAX. */
size_t prp_request_emit(const struct prp_request *rq, uint8_t ret[PRP_REQUEST_MAX]);

struct prp_head { uint8_t status; uint32_t len_bytes; uint8_t sense[PRP_SENSE_BYTES]; };
/* PROTOCOL: a length or a status that no answer to rq has. */
MUST_USE int prp_head_parse(const uint8_t bytes[PRP_HEAD_BYTES], const struct prp_request *rq, struct prp_head *ret, struct byre_err *err);

struct prp_sense { uint8_t key, asc, ascq; };      /* key below 16 */
/* false: they are in no form that is known. */
bool prp_sense_parse(const uint8_t sense[PRP_SENSE_BYTES], struct prp_sense *ret);

/* ---- the data of IN. All of these: PROTOCOL when it is too short for what it is. data is not NULL, and outlives what is made of it ---- */

/* more: the device has more than came. */
struct prp_keys { uint32_t generation; bool more; struct rcur rest; };
MUST_USE int prp_keys_parse(const void *data, size_t len, struct prp_keys *ret, struct byre_err *err);
bool prp_keys_next(struct prp_keys *k, uint64_t *ret_key);            /* false: that were all */

struct prp_reservation { uint32_t generation; bool held; uint64_t key; unsigned scope, type; };
MUST_USE int prp_reservation_parse(const void *data, size_t len, struct prp_reservation *ret, struct byre_err *err);

struct prp_capabilities {
    bool replaces_lost, compatible, any_initiator, all_ports, aptpl, aptpl_now, types_known;      /* RLR_C CRH SIP_C ATP_C PTPL_C PTPL_A TMV */
    unsigned allows;                       /* ALLOW COMMANDS, 0 to 7 */
    unsigned types;                        /* with types_known: bit n, type n */
};
MUST_USE int prp_capabilities_parse(const void *data, size_t len, struct prp_capabilities *ret, struct byre_err *err);

struct prp_status { uint32_t generation; bool more; struct rcur rest; };
struct prp_registrant { uint64_t key; bool all_ports, holder; unsigned scope, type, port; const uint8_t *transport; uint32_t transport_bytes; };
MUST_USE int prp_status_parse(const void *data, size_t len, struct prp_status *ret, struct byre_err *err);
/* false: that were all that came whole; one that is cut off sets `more`. */
bool prp_status_next(struct prp_status *s, struct prp_registrant *ret);

#endif
