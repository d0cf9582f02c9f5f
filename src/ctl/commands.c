/* SPDX-License-Identifier: MIT
 *
 * commands.c: the table of commands.
 *
 * Purpose      One row per command; the row lives beside its function.
 * Owns         constant table
 * Invariants   I1 names are in alphabetical order and unique
 * Concurrency  any
 * Failure      none
 * Tests        ctl_test.c
 */
#include <string.h>

#include "ctl/ctl_priv.h"

const struct ctl_command *const ctl_commands[] = {
    &ctl_cmd_add_fd,
    &ctl_cmd_block_commit,
    &ctl_cmd_bitmap_add,
    &ctl_cmd_bitmap_clear,
    &ctl_cmd_bitmap_disable,
    &ctl_cmd_bitmap_enable,
    &ctl_cmd_bitmap_merge,
    &ctl_cmd_bitmap_remove,
    &ctl_cmd_block_export_add,
    &ctl_cmd_block_export_del,
    &ctl_cmd_block_job_cancel,
    &ctl_cmd_block_job_change,
    &ctl_cmd_block_job_complete,
    &ctl_cmd_block_job_dismiss,
    &ctl_cmd_block_job_finalize,
    &ctl_cmd_block_job_pause,
    &ctl_cmd_block_job_resume,
    &ctl_cmd_block_job_set_speed,
    &ctl_cmd_latency_histogram,
    &ctl_cmd_write_threshold,
    &ctl_cmd_block_stream,
    &ctl_cmd_block_resize,
    &ctl_cmd_io_throttle,
    &ctl_cmd_blockdev_add,
    &ctl_cmd_blockdev_backup,
    &ctl_cmd_change_medium,
    &ctl_cmd_close_tray,
    &ctl_cmd_blockdev_create,
    &ctl_cmd_blockdev_del,
    &ctl_cmd_insert_medium,
    &ctl_cmd_blockdev_mirror,
    &ctl_cmd_open_tray,
    &ctl_cmd_remove_medium,
    &ctl_cmd_blockdev_reopen,
    &ctl_cmd_blockdev_set_active,
    &ctl_cmd_blockdev_snapshot,
    &ctl_cmd_snapshot_delete,
    &ctl_cmd_snapshot_create,
    &ctl_cmd_blockdev_snapshot_sync,
    &ctl_cmd_change_backing_file,
    &ctl_cmd_chardev_add,
    &ctl_cmd_chardev_change,
    &ctl_cmd_chardev_remove,
    &ctl_cmd_chardev_send_break,
    &ctl_cmd_closefd,
    &ctl_cmd_drive_backup,
    &ctl_cmd_drive_mirror,
    &ctl_cmd_eject,
    &ctl_cmd_getfd,
    &ctl_cmd_job_cancel,
    &ctl_cmd_job_complete,
    &ctl_cmd_job_dismiss,
    &ctl_cmd_job_finalize,
    &ctl_cmd_job_pause,
    &ctl_cmd_job_resume,
    &ctl_cmd_nbd_server_add,
    &ctl_cmd_nbd_server_remove,
    &ctl_cmd_nbd_server_start,
    &ctl_cmd_nbd_server_stop,
    &ctl_cmd_object_add,
    &ctl_cmd_object_del,
    &ctl_cmd_qmp_capabilities,
    &ctl_cmd_qom_get,
    &ctl_cmd_qom_list,
    &ctl_cmd_qom_list_properties,
    &ctl_cmd_qom_list_types,
    &ctl_cmd_qom_set,
    &ctl_cmd_query_block,
    &ctl_cmd_query_block_exports,
    &ctl_cmd_query_block_jobs,
    &ctl_cmd_query_blockstats,
    &ctl_cmd_query_chardev,
    &ctl_cmd_query_chardev_backends,
    &ctl_cmd_query_commands,
    &ctl_cmd_query_fdsets,
    &ctl_cmd_query_iothreads,
    &ctl_cmd_query_jobs,
    &ctl_cmd_query_named_block_nodes,
    &ctl_cmd_query_pr_managers,
    &ctl_cmd_query_qmp_schema,
    &ctl_cmd_query_version,
    &ctl_cmd_query_yank,
    &ctl_cmd_quit,
    &ctl_cmd_remove_fd,
    &ctl_cmd_ringbuf_read,
    &ctl_cmd_ringbuf_write,
    &ctl_cmd_transaction,
    &ctl_cmd_blockdev_amend,
    &ctl_cmd_blockdev_change,
    &ctl_cmd_set_iothread,
    &ctl_cmd_x_byre_compact,
    &ctl_cmd_x_byre_metrics,
    &ctl_cmd_monitor_add,
    &ctl_cmd_x_byre_reserve_in,
    &ctl_cmd_x_byre_reserve_out,
    &ctl_cmd_x_byre_export_stats,
    &ctl_cmd_x_byre_job_end,
    &ctl_cmd_query_nbd_servers,
    &ctl_cmd_x_byre_scrub,
    &ctl_cmd_stats_intervals,
    &ctl_cmd_bitmap_sha256,
    &ctl_cmd_block_graph,
    &ctl_cmd_yank,
    NULL
};

const struct ctl_command *ctl_find_command(const char *name)
{
    for (const struct ctl_command *const *c = ctl_commands; *c; c++)
        if (strcmp((*c)->name, name) == 0)
            return *c;
    return NULL;
}
