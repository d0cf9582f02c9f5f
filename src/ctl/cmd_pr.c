/* SPDX-License-Identifier: MIT
 *
 * cmd_pr.c: query-pr-managers, x-byre-persistent-reserve-in, x-byre-persistent-reserve-out, and objects of the type pr-manager-helper (FEATURES 3.021, G.051).
 *
 * Purpose      Persistent reservations of a node's device, asked for by name and not by a guest's SCSI commands, which no export here carries.
 * Owns         nothing: managers are in the set of the graph
 * Invariants   I1 an argument that the action does not know is refused: nobody believes that it counted
 * Concurrency  home loop; a command suspends until its helper has answered, for so long as its caller says, and is cancelled with its client at the end
 * Failure      as ctl_priv.h; names the node, and the manager or what the device said
 * Tests        tests/daemon/pr_test.py
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/id.h"
#include "ctl/ctl_priv.h"
#include "ctl/qom.h"
#include "graph/pr.h"

#define TIMEOUT_MS 30000u                  /* devices answer late when their paths fail */
#define TIMEOUT_MS_MAX 60000u              /* a client that has gone holds the node for so long */
#define KEY_DIGITS_MAX 16u

/* ---- objects ---- */

static struct pr_set *set_of(const struct ctl *c) { return c->env.graph ? graph_prs(c->env.graph) : NULL; }

struct pr_manager *ctl_pr(const struct ctl *c, const char *id) { return pr_find(set_of(c), id); }

int ctl_pr_add(struct co *co, struct ctl_call *call)
{
    const char *id = json_string_value(json_object_get(call->arguments, "id")), *path = json_string_value(json_object_get(call->arguments, "path"));
    if (!set_of(call->c))
        return byre_fail(&call->err, NOT_SUPPORTED, "there are no files here whose reservations could be managed");
    if (!id_is_good(id, SIZE_MAX))
        return byre_fail(&call->err, BAD_ARGUMENT, "Parameter 'id' expects an identifier, not '%s'", id);
    return pr_add(co, set_of(call->c), &(struct pr_new){ id, path, PR_ADD_MS }, &call->err);
}

int ctl_pr_del(struct ctl_call *call, const char *id)
{
    struct pr_manager *m = ctl_pr(call->c, id);
    return m ? pr_remove(set_of(call->c), m, &call->err) : 1;
}

int ctl_pr_get(struct ctl_call *call, const struct pr_manager *m, const char *property)
{
    if (strcmp(property, "type") && strcmp(property, "path"))
        return byre_fail(&call->err, NOT_FOUND, "Property 'pr-manager-helper.%s' not found", property);
    call->ret = json_string(property[0] == 't' ? "pr-manager-helper" : pr_path(m));
    return call->ret ? 0 : ctl_no_memory(call);
}

void ctl_pr_changed(void *arg, const char *id, bool connected)
{
    ctl_send_event(arg, "PR_MANAGER_STATUS_CHANGED", json_pack("{s:s,s:b}", "id", id, "connected", connected));
}

/* ---- query-pr-managers ---- */

static const struct ctl_arg info_rows[] = {
    { "id", CTL_STR, true, CTL_AT_NONE },
    { "connected", CTL_BOOL, true, CTL_AT_NONE, .doc = "Is there a connection to the helper? Without one, the next command makes one." },
    CTL_ARGS_END
};
static const struct ctl_shape info_shape = { .name = "PRManagerInfo", .rows = info_rows };
static const struct ctl_arg ret_managers = { "managers", CTL_STRUCT, true, CTL_AT_NONE, .of = &info_shape, .list = true };

static int run_query(struct co *co, struct ctl_call *call)
{
    const struct pr_set *s = set_of(call->c);
    call->ret = json_array();
    for (struct pr_manager *m = s ? pr_next(s, NULL) : NULL; call->ret && m; m = pr_next(s, m))
        if (json_array_append_new(call->ret, json_pack("{s:s,s:b}", "id", pr_id(m), "connected", pr_look(m))))
            return ctl_no_memory(call);
    return call->ret ? 0 : ctl_no_memory(call);
}

/* ---- asking ---- */

static const char *const in_words[] = { [PRP_READ_KEYS] = "read-keys", [PRP_READ_RESERVATION] = "read-reservation",
                                        [PRP_REPORT_CAPABILITIES] = "report-capabilities", [PRP_READ_FULL_STATUS] = "read-full-status", NULL };
static const struct ctl_shape in_action = { .name = "XByrePersistentReserveInAction", .words = in_words };
static const char *const out_words[] = { [PRP_REGISTER] = "register", [PRP_RESERVE] = "reserve", [PRP_RELEASE] = "release", [PRP_CLEAR] = "clear", [PRP_PREEMPT] = "preempt",
                                         [PRP_PREEMPT_AND_ABORT] = "preempt-and-abort", [PRP_REGISTER_AND_IGNORE] = "register-and-ignore-existing-key", NULL };
static const struct ctl_shape out_action = { .name = "XByrePersistentReserveOutAction", .words = out_words };
static const char *const type_words[] = { "write-exclusive", "exclusive-access", "write-exclusive-registrants-only", "exclusive-access-registrants-only",
                                          "write-exclusive-all-registrants", "exclusive-access-all-registrants", NULL };
static const struct ctl_shape type_shape = { .name = "XByrePersistentReservationType", .words = type_words };
static const uint8_t type_codes[] = { 1, 3, 5, 6, 7, 8 };       /* of these words, as SPC counts them */
#define TYPES (sizeof type_codes / sizeof type_codes[0])

/* NULL: SPC has none of that number. */
static const char *type_word(unsigned code)
{
    for (unsigned i = 0; i < TYPES; i++)
        if (type_codes[i] == code)
            return type_words[i];
    return NULL;
}

static const char *const sense_words[16] = { "no sense", "recovered error", "not ready", "medium error", "hardware error", "illegal request", "unit attention", "data protect",
                                             "blank check", "vendor specific", "copy aborted", "aborted command", "reserved", "volume overflow", "miscompare", "completed" };

/* What the device said of it. */
static int judge(struct ctl_call *call, const char *node, const char *action, const struct pr_answer *a)
{
    struct prp_sense s;
    if (a->head.status == PRP_GOOD)
        return 0;
    if (a->head.status == PRP_RESERVATION_CONFLICT)
        return byre_fail(&call->err, PERMISSION, "node '%s': %s: reservation conflict: the key is not the one that is registered from here, or somebody else has the reservation", node, action);
    if (a->head.status == PRP_CHECK_CONDITION && prp_sense_parse(a->head.sense, &s))
        return byre_fail(&call->err, IO, "node '%s': %s: the device refuses it: sense key 0x%x (%s), ASC 0x%02x, ASCQ 0x%02x", node, action, (unsigned)s.key, sense_words[s.key],
                         (unsigned)s.asc, (unsigned)s.ascq);
    return byre_fail(&call->err, IO, "node '%s': %s: the device answers with SCSI status 0x%02x", node, action, (unsigned)a->head.status);
}

/* *ret_answer lives as long as the call; its status is GOOD. */
static int ask(struct co *co, struct ctl_call *call, const char *node, const char *action, const struct pr_call *what, struct pr_answer **ret_answer)
{
    struct graph_node *n = ctl_node(call, node);
    if (!n)
        return call->err.code;
    struct pr_answer *a = ctl_arena_get(&call->arena, sizeof *a);
    if (!a)
        return ctl_no_memory(call);
    int r = graph_pr_run(co, n, what, a, &call->err);
    if (!r)
        r = judge(call, node, action, a);
    if (!r)
        *ret_answer = a;
    return r;
}

static unsigned limit_of(uint64_t timeout_ms) { return timeout_ms ? (unsigned)timeout_ms : TIMEOUT_MS; }

#define TIMEOUT_ROW(T) { "timeout-ms", CTL_SIZE, false, CTL_AT(T, timeout_ms), .max = TIMEOUT_MS_MAX,                                   \
                         .doc = "How long the helper is waited for, and the commands that others have sent to it before; 30000 when it is not given, or 0." }
#define NODE_ROW(T) { "node-name", CTL_STR, true, CTL_AT(T, node), .doc = "A file or device that was opened with pr-manager, or a node over one." }

/* ---- x-byre-persistent-reserve-in ---- */

struct in_args { const char *node; int action; uint64_t timeout_ms; };
static const struct ctl_arg in_rows[] = {
    NODE_ROW(struct in_args),
    { "service-action", CTL_ENUM, true, CTL_AT(struct in_args, action), .of = &in_action },
    TIMEOUT_ROW(struct in_args),
    CTL_ARGS_END
};
#define KEY_DOC "0x and 16 hexadecimal digits."
#define FLAG(name_, text) { name_, CTL_BOOL, true, CTL_AT_NONE, .doc = text }
static const struct ctl_arg reservation_rows[] = {
    { "key", CTL_STR, true, CTL_AT_NONE, .doc = KEY_DOC },
    { "scope", CTL_INT, true, CTL_AT_NONE, .doc = "0: the logical unit." },
    { "type", CTL_ENUM, false, CTL_AT_NONE, .of = &type_shape, .doc = "Missing: a number that SPC does not have." },
    CTL_ARGS_END
};
static const struct ctl_shape reservation_shape = { .name = "XByrePersistentReservation", .rows = reservation_rows };
static const struct ctl_arg capabilities_rows[] = {
    FLAG("replace-lost-reservation", NULL), FLAG("compatible-reservation-handling", NULL), FLAG("specify-initiator-ports", NULL), FLAG("all-target-ports", NULL),
    FLAG("persist-through-power-loss", "Can registrations outlive a loss of power?"), FLAG("persist-through-power-loss-activated", "Do they now?"),
    { "allow-commands", CTL_INT, true, CTL_AT_NONE, .doc = "What others may do in spite of a reservation: the field ALLOW COMMANDS of SPC." },
    { "types", CTL_ENUM, false, CTL_AT_NONE, .of = &type_shape, .list = true, .doc = "Which reservations there can be; missing when the device does not say." },
    CTL_ARGS_END
};
static const struct ctl_shape capabilities_shape = { .name = "XByrePersistentReserveCapabilities", .rows = capabilities_rows };
static const struct ctl_arg registrant_rows[] = {
    { "key", CTL_STR, true, CTL_AT_NONE, .doc = KEY_DOC },
    FLAG("holder", "Does it have the reservation?"), FLAG("all-target-ports", NULL),
    { "scope", CTL_INT, false, CTL_AT_NONE, .doc = "Of a holder." },
    { "type", CTL_ENUM, false, CTL_AT_NONE, .of = &type_shape, .doc = "Of a holder." },
    { "relative-target-port", CTL_INT, false, CTL_AT_NONE, .doc = "Missing with all-target-ports." },
    { "transport-id", CTL_STR, true, CTL_AT_NONE, .doc = "Hexadecimal digits." },
    CTL_ARGS_END
};
static const struct ctl_shape registrant_shape = { .name = "XByrePersistentRegistrant", .rows = registrant_rows };
static const struct ctl_arg in_ret_rows[] = {
    { "data", CTL_STR, true, CTL_AT_NONE, .doc = "All that the device answered, as hexadecimal digits." },
    { "generation", CTL_INT, false, CTL_AT_NONE, .doc = "Counts changes of registrations; not with report-capabilities." },
    { "truncated", CTL_BOOL, false, CTL_AT_NONE, .doc = "True: the device has more than fits into an answer (8 KiB)." },
    { "keys", CTL_STR, false, CTL_AT_NONE, .list = true, .doc = "With read-keys." },
    { "reservation", CTL_STRUCT, false, CTL_AT_NONE, .of = &reservation_shape, .doc = "With read-reservation, when there is one." },
    { "capabilities", CTL_STRUCT, false, CTL_AT_NONE, .of = &capabilities_shape, .doc = "With report-capabilities." },
    { "full-status", CTL_STRUCT, false, CTL_AT_NONE, .of = &registrant_shape, .list = true, .doc = "With read-full-status." },
    CTL_ARGS_END
};
static const struct ctl_shape in_ret_shape = { .name = "XByrePersistentReserveIn", .rows = in_ret_rows };
static const struct ctl_arg ret_in = { "answer", CTL_STRUCT, true, CTL_AT_NONE, .of = &in_ret_shape };

static json_t *hex_json(const uint8_t *bytes, size_t n)
{
    static const char digits[] = "0123456789abcdef";
    char *text = malloc(2 * n + 1);
    if (!text)
        return NULL;
    for (size_t i = 0; i < n; i++) {
        text[2 * i] = digits[bytes[i] >> 4];
        text[2 * i + 1] = digits[bytes[i] & 15];
    }
    json_t *v = json_stringn(text, 2 * n);
    free(text);
    return v;
}

static json_t *key_json(uint64_t key)
{
    char text[2 + KEY_DIGITS_MAX + 1];
    snprintf(text, sizeof text, "0x%016" PRIx64, key);
    return json_string(text);
}

/* Takes v over; NULL: memory ran out, which -1 says. */
static int put(json_t *o, const char *key, json_t *v) { return json_object_set_new(o, key, v); }

static int put_type(json_t *o, unsigned scope, unsigned code)
{
    const char *word = type_word(code);
    int r = put(o, "scope", json_integer(scope));
    return r || !word ? r : put(o, "type", json_string(word));
}

static int put_list(json_t *o, const char *key, json_t *list, json_t **ret_list)
{
    *ret_list = list;
    return put(o, key, list);
}

static int put_generation(json_t *o, uint32_t generation, bool more)
{
    int r = put(o, "generation", json_integer(generation));
    return r || !more ? r : put(o, "truncated", json_true());
}

/* What follows returns -1 when memory ran out, or as the parsers do. */

static int keys_json(json_t *o, const struct pr_answer *a, struct byre_err *err)
{
    struct prp_keys k;
    uint64_t key;
    json_t *list = NULL;
    int r = prp_keys_parse(a->data, a->head.len_bytes, &k, err);
    if (!r)
        r = put_generation(o, k.generation, k.more);
    if (!r)
        r = put_list(o, "keys", json_array(), &list);
    while (!r && prp_keys_next(&k, &key))
        r = json_array_append_new(list, key_json(key));
    return r;
}

static int reservation_json(json_t *o, const struct pr_answer *a, struct byre_err *err)
{
    struct prp_reservation v;
    json_t *held = NULL;
    int r = prp_reservation_parse(a->data, a->head.len_bytes, &v, err);
    if (!r)
        r = put_generation(o, v.generation, false);
    if (r || !v.held)
        return r;
    r = put_list(o, "reservation", json_object(), &held);
    if (!r)
        r = put(held, "key", key_json(v.key));
    return r ? r : put_type(held, v.scope, v.type);
}

static int capabilities_json(json_t *o, const struct pr_answer *a, struct byre_err *err)
{
    struct prp_capabilities v;
    json_t *list = NULL;
    int r = prp_capabilities_parse(a->data, a->head.len_bytes, &v, err);
    if (r)
        return r;
    json_t *c = json_pack("{s:b,s:b,s:b,s:b,s:b,s:b,s:i}", "replace-lost-reservation", v.replaces_lost, "compatible-reservation-handling", v.compatible,
                          "specify-initiator-ports", v.any_initiator, "all-target-ports", v.all_ports, "persist-through-power-loss", v.aptpl,
                          "persist-through-power-loss-activated", v.aptpl_now, "allow-commands", (int)v.allows);
    r = put(o, "capabilities", c);
    if (r || !v.types_known)
        return r;
    r = put_list(c, "types", json_array(), &list);
    for (unsigned i = 0; !r && i < TYPES; i++)
        if (v.types >> type_codes[i] & 1)
            r = json_array_append_new(list, json_string(type_words[i]));
    return r;
}

static json_t *registrant_json(const struct prp_registrant *g)
{
    json_t *o = json_pack("{s:o,s:b,s:b,s:o}", "key", key_json(g->key), "holder", g->holder, "all-target-ports", g->all_ports,
                          "transport-id", hex_json(g->transport, g->transport_bytes));
    if (o && ((g->holder && put_type(o, g->scope, g->type)) || (!g->all_ports && put(o, "relative-target-port", json_integer(g->port))))) {
        json_decref(o);
        return NULL;
    }
    return o;
}

static int status_json(json_t *o, const struct pr_answer *a, struct byre_err *err)
{
    struct prp_status s;
    struct prp_registrant g;
    json_t *list = NULL;
    int r = prp_status_parse(a->data, a->head.len_bytes, &s, err);
    if (!r)
        r = put_list(o, "full-status", json_array(), &list);
    while (!r && prp_status_next(&s, &g))
        r = json_array_append_new(list, registrant_json(&g));
    return r ? r : put_generation(o, s.generation, s.more);
}

static int run_in(struct co *co, struct ctl_call *call)
{
    static int (*const decode[])(json_t *o, const struct pr_answer *a, struct byre_err *err) = {
        [PRP_READ_KEYS] = keys_json, [PRP_READ_RESERVATION] = reservation_json, [PRP_REPORT_CAPABILITIES] = capabilities_json, [PRP_READ_FULL_STATUS] = status_json };
    const struct in_args *args = call->args;
    const struct pr_call what = { .request = { .action = (unsigned)args->action }, .limit_ms = limit_of(args->timeout_ms) };
    struct byre_err why = { 0 };
    struct pr_answer *a = NULL;
    int r = ask(co, call, args->node, in_words[args->action], &what, &a);
    if (r)
        return r;
    call->ret = json_pack("{s:o}", "data", hex_json(a->data, a->head.len_bytes));
    r = call->ret ? decode[args->action](call->ret, a, &why) : -1;
    if (why.code)
        return byre_fail(&call->err, PROTOCOL, "node '%s': %s: the device's answer makes no sense: %s", args->node, in_words[args->action], why.text);
    return r ? ctl_no_memory(call) : 0;
}

/* ---- x-byre-persistent-reserve-out ---- */

struct out_args { const char *node, *key, *action_key; int action, type; bool has_type, aptpl, all_ports; uint64_t timeout_ms; };
static const struct ctl_arg out_rows[] = {
    NODE_ROW(struct out_args),
    { "service-action", CTL_ENUM, true, CTL_AT(struct out_args, action), .of = &out_action },
    { "key", CTL_STR, false, CTL_AT(struct out_args, key),
      .doc = "The key that is registered from here, as 0x and hexadecimal digits. Needed, but for register, where it is missing as long as there is none, and not for "
             "register-and-ignore-existing-key." },
    { "service-action-key", CTL_STR, false, CTL_AT(struct out_args, action_key),
      .doc = "With register and register-and-ignore-existing-key the key from now on, 0x0 for none; with preempt and preempt-and-abort the key whose registrations go." },
    { "type", CTL_ENUM, false, CTL_AT_HAS(struct out_args, type), .of = &type_shape, .doc = "With reserve, release, preempt and preempt-and-abort." },
    { "aptpl", CTL_BOOL, false, CTL_AT(struct out_args, aptpl), .doc = "Registrations and reservation outlive a loss of power; with register and register-and-ignore-existing-key." },
    { "all-target-ports", CTL_BOOL, false, CTL_AT(struct out_args, all_ports), .doc = "Registers at all ports of the target; as aptpl." },
    TIMEOUT_ROW(struct out_args),
    CTL_ARGS_END
};

/* What an action takes. */
enum takes { TAKES_NOT, MAY_TAKE, NEEDS };
static const struct rule { enum takes key, action_key, type; bool registers; } rules[] = {
    [PRP_REGISTER] = { MAY_TAKE, NEEDS, TAKES_NOT, true }, [PRP_RESERVE] = { NEEDS, TAKES_NOT, NEEDS, false }, [PRP_RELEASE] = { NEEDS, TAKES_NOT, NEEDS, false },
    [PRP_CLEAR] = { NEEDS, TAKES_NOT, TAKES_NOT, false }, [PRP_PREEMPT] = { NEEDS, NEEDS, NEEDS, false }, [PRP_PREEMPT_AND_ABORT] = { NEEDS, NEEDS, NEEDS, false },
    [PRP_REGISTER_AND_IGNORE] = { TAKES_NOT, NEEDS, TAKES_NOT, true },
};

/* I1 */
static int check_given(struct ctl_call *call, const char *action, const char *name, bool given, enum takes takes)
{
    if (given && takes == TAKES_NOT)
        return byre_fail(&call->err, BAD_ARGUMENT, "'%s' does not belong to the service action '%s'", name, action);
    if (!given && takes == NEEDS)
        return byre_fail(&call->err, BAD_ARGUMENT, "'%s' is needed for the service action '%s'", name, action);
    return 0;
}

static int check_out(struct ctl_call *call, const struct out_args *a)
{
    const struct rule *rule = &rules[a->action];
    const char *action = out_words[a->action];
    int r = check_given(call, action, "key", a->key, rule->key);
    if (!r)
        r = check_given(call, action, "service-action-key", a->action_key, rule->action_key);
    if (!r)
        r = check_given(call, action, "type", a->has_type, rule->type);
    if (!r)
        r = check_given(call, action, "aptpl", a->aptpl, rule->registers ? MAY_TAKE : TAKES_NOT);
    return r ? r : check_given(call, action, "all-target-ports", a->all_ports, rule->registers ? MAY_TAKE : TAKES_NOT);
}

/* text NULL: 0. */
static int take_key(struct ctl_call *call, const char *name, const char *text, uint64_t *ret)
{
    size_t digits = text && !strncmp(text, "0x", 2) ? strspn(text + 2, "0123456789abcdefABCDEF") : 0;
    if (text && (!digits || digits > KEY_DIGITS_MAX || text[2 + digits]))
        return byre_fail(&call->err, BAD_ARGUMENT, "'%s': '%s' is no key: 0x and 1 to %u hexadecimal digits", name, text, KEY_DIGITS_MAX);
    *ret = text ? strtoull(text + 2, NULL, 16) : 0;
    return 0;
}

static int run_out(struct co *co, struct ctl_call *call)
{
    const struct out_args *a = call->args;
    struct pr_call what = { .limit_ms = limit_of(a->timeout_ms), .request = { .out = true, .action = (unsigned)a->action, .aptpl = a->aptpl, .all_ports = a->all_ports,
                                                                             .type = a->has_type ? type_codes[a->type] : 0 } };
    struct pr_answer *answer;
    int r = check_out(call, a);
    if (!r)
        r = take_key(call, "key", a->key, &what.request.key);
    if (!r)
        r = take_key(call, "service-action-key", a->action_key, &what.request.action_key);
    return r ? r : ask(co, call, a->node, out_words[a->action], &what, &answer);
}

const struct ctl_command ctl_cmd_query_pr_managers = { "query-pr-managers", NULL, 0, run_query, .ret = &ret_managers,
    .doc = "Lists the managers of persistent reservations (objects pr-manager-helper)." };
const struct ctl_command ctl_cmd_x_byre_reserve_in = { "x-byre-persistent-reserve-in", in_rows, sizeof(struct in_args), run_in, .ret = &ret_in,
    .doc = "Asks the device of a node who has registered and reserved it (SCSI PERSISTENT RESERVE IN), by the node's manager of persistent reservations. "
           "A helper that does not answer in time is given up, and connected to anew with the next command." };
const struct ctl_command ctl_cmd_x_byre_reserve_out = { "x-byre-persistent-reserve-out", out_rows, sizeof(struct out_args), run_out,
    .doc = "Registers with the device of a node, reserves it, or takes registrations of others away (SCSI PERSISTENT RESERVE OUT), for the logical unit as a whole. "
           "When the helper did not answer, the device may have done it all the same: read-keys tells." };
