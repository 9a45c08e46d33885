"""Which faults are foreseen, what does each lead to, and which tests hold that? `make test-faults` runs them and prints this table with results.

`python -m tests.faults.rows` prints it as docs/reliability.md shows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

CHECKPOINTS, RUNS = "run/test_checkpoints.py", "faults/test_runs.py"
RESUME, RL = "end_to_end/test_resume.py", "end_to_end/test_rl_run.py"
POOL, WORKER_KILLS, RANDOM_KILLS = "rollout/test_pool.py", "faults/test_worker_kills.py", "faults/test_random_kills.py"
RUNTIME, REWARD_FAULTS, CANARY = "rewards/test_runtime.py", "rewards/test_faults.py", "rewards/test_canary.py"
TRAINER, STATE, PLAN = "policy/test_trainer.py", "policy/test_state.py", "plan/test_stages.py"
SOURCES, FILES, TEMPLATES = "data/test_sources.py", "data/test_files.py", "data/test_templates.py"
MISTAKES, INPUTS, YAML, LOADING = "config/test_mistakes.py", "config/test_inputs.py", "config/test_yamltree.py", "config/test_loading.py"
SECURITY, PORTS, TRACKERS = "test_security.py", "run/test_ray_ports.py", "run/test_trackers.py"
HOSTILE = "rewards/test_hostile_code.py"


@dataclass(frozen=True)
class FaultRow:
    """``tests``: by file below tests/, names of functions, whatever their parameters."""

    number: int
    fault: str
    promise: str
    tests: Mapping[str, Sequence[str]]

    def node_ids(self) -> Iterator[str]:
        return (f"tests/{file}::{name}" for file, names in self.tests.items() for name in names)


ROWS = (
    FaultRow(
        1,
        "kill -9 between two writes of a checkpoint",
        "the one before loads; what is left is removed, and said",
        {
            CHECKPOINTS: ["test_a_kill_between_any_two_writes_leaves_a_whole_checkpoint"],
            RESUME: ["test_kill_9_and_the_same_command_end_in_the_same_bits", "test_optimizer_and_weights_go_on_to_the_bit"],
        },
    ),
    FaultRow(
        2,
        "kill -9 after the rename, before old ones go",
        "all are valid; the next run removes the old ones",
        {CHECKPOINTS: ["test_a_kill_between_any_two_writes_leaves_a_whole_checkpoint", "test_two_stay_at_least_and_the_best"]},
    ),
    FaultRow(
        3,
        "the newest checkpoint cut short, or one bit of it flipped",
        "the file is named; the newest valid one is used",
        {
            CHECKPOINTS: [
                "test_a_damaged_file_is_named_and_the_one_before_is_used",
                "test_every_single_bit_of_a_manifest_matters",
                "test_one_that_is_not_whole_does_not_count_among_those_that_stay",
            ]
        },
    ),
    FaultRow(
        4,
        "2N steps against N, a resume, and N",
        "the same bits, for rl, sft, distill and adapters, in the middle of an epoch too",
        {
            RESUME: [
                "test_kill_9_and_the_same_command_end_in_the_same_bits",
                "test_optimizer_and_weights_go_on_to_the_bit",
                "test_supervised_training_goes_on_in_the_middle_of_an_epoch",
            ],
            STATE: ["test_resumed_training_is_undisturbed_training", "test_two_ranks_go_on_to_the_bit_each_with_its_own_shard"],
        },
    ),
    FaultRow(
        5,
        "kill -9 in the middle of a step",
        "as 4; no step twice in metrics.jsonl, each prompt of an epoch once",
        {
            RANDOM_KILLS: ["test_a_kill_at_any_time_changes_nothing"],
            RUNS: ["test_a_run_that_is_killed_in_every_step_ends_like_an_undisturbed_one"],
        },
    ),
    FaultRow(
        6,
        "the recipe, its data, its model, code it imports or the number of ranks changed since",
        "a stage not begun follows; one begun stops, names keys and files, offers --redo; harmless keys pass",
        {
            PLAN: [
                "test_a_changed_setting_is_refused_and_named_at_the_first_stage_it_changes",
                "test_changed_rows_of_a_file_are_a_change",
                "test_redo_accepts_the_change_for_the_stages_that_are_made_again",
                "test_a_result_is_refused_once_what_it_was_made_from_is_another",
            ],
            RESUME: ["test_a_half_done_stage_keeps_to_its_recipe", "test_an_edit_is_followed_where_nothing_was_kept"],
            RUNS: ["test_finished_stages_are_skipped_the_broken_one_goes_on_and_one_not_begun_follows_an_edit"],
        },
    ),
    FaultRow(
        7,
        "the same command after a finished run",
        '"already complete", exit 0',
        {
            RL: ["test_a_run_leaves_what_the_contract_says_and_is_not_made_twice"],
            RUNS: ["test_finished_stages_are_skipped_the_broken_one_goes_on_and_one_not_begun_follows_an_edit"],
        },
    ),
    FaultRow(
        8,
        "the same command on a half-done recipe",
        "finished stages are skipped by content, the broken one goes on",
        {
            PLAN: ["test_finished_stages_are_done", "test_a_stage_whose_input_is_gone_is_not_done"],
            RUNS: ["test_finished_stages_are_skipped_the_broken_one_goes_on_and_one_not_begun_follows_an_edit"],
        },
    ),
    FaultRow(
        9,
        "two processes on one folder; a dead one's lock",
        "the second is refused, by host and process; a dead one's lock is taken over",
        {
            "run/test_folder.py": [
                "test_a_second_process_is_refused_by_host_and_pid_and_a_dead_ones_hold_is_taken_over",
                "test_of_two_that_begin_at_once_one_gets_the_folder",
            ]
        },
    ),
    FaultRow(
        10,
        "SIGTERM, SIGINT or SIGHUP while sampling, updating, saving, to the driver or to all processes of a run",
        "the step ends and is saved, exit 143, 130 or 129; a second signal does not wait; no process stays",
        {
            RUNS: [
                "test_a_signal_in_any_part_of_a_step_lets_it_end_and_saves_it",
                "test_a_signal_to_all_processes_of_a_run_saves_and_the_same_command_goes_on",
                "test_a_second_signal_does_not_wait_for_the_step",
                "test_what_is_left_of_a_killed_run_is_no_process",
            ],
            RESUME: ["test_a_signal_ends_the_step_saves_and_leaves_no_process"],
        },
    ),
    FaultRow(
        11,
        "a full disk",
        "bytes needed and free are told; the checkpoint before stays, and the run goes on once there is room",
        {
            RUNS: ["test_a_disk_that_fills_up_stops_the_run_with_numbers_and_the_run_goes_on_once_there_is_room"],
            CHECKPOINTS: ["test_a_disk_that_fills_up_loses_nothing", "test_too_little_room_is_told_in_bytes"],
            STATE: ["test_too_little_room_is_said_before_anything_is_written"],
        },
    ),
    FaultRow(
        12,
        "a folder on a read-only mount",
        "refused before any model is loaded",
        {RUNS: ["test_a_read_only_folder_is_refused_before_anything_is_loaded"]},
    ),
    FaultRow(
        13,
        "a rollout worker killed while idle",
        "noticed, replaced, brought up to the version; the run completes",
        {
            POOL: ["test_a_killed_worker_changes_no_sample"],
            WORKER_KILLS: ["test_a_kill_at_any_time_changes_nothing", "test_the_weights_at_the_end_are_those_of_an_undisturbed_run"],
        },
    ),
    FaultRow(
        14,
        "a rollout worker killed while it draws",
        "its prompts are drawn again; each counts once",
        {
            POOL: ["test_a_killed_worker_changes_no_sample"],
            WORKER_KILLS: ["test_a_kill_at_any_time_changes_nothing", "test_the_weights_at_the_end_are_those_of_an_undisturbed_run"],
        },
    ),
    FaultRow(
        15,
        "a worker that dies every time",
        "so many restarts, then a clear error, or the others do its work",
        {
            POOL: [
                "test_other_workers_take_over_from_a_given_up_one",
                "test_others_take_over_if_no_replacement_starts",
            ]
        },
    ),
    FaultRow(
        16,
        "all workers dead",
        "an error within the deadline",
        {POOL: ["test_too_few_workers_left_stop_the_run", "test_hanging_in_every_sync_ends_the_run"]},
    ),
    FaultRow(
        17,
        "a replacement with old weights",
        "serves only at the trainer's version",
        {POOL: ["test_a_replacement_serves_the_version_of_the_others"]},
    ),
    FaultRow(
        18,
        "generation hangs",
        "deadline, and others draw it",
        {
            POOL: [
                "test_a_hung_worker_is_replaced_after_its_deadline",
                "test_a_worker_that_hangs_in_a_sync_is_replaced",
                "test_a_worker_that_hangs_at_start_is_replaced",
            ],
            "rollout/test_engine.py": ["test_the_deadline_names_and_cancels_what_is_missing"],
        },
    ),
    FaultRow(
        19,
        "the trainer's process dies",
        "the cause is told, no process stays, exit 1, and the run goes on",
        {
            RUNS: ["test_a_trainer_that_dies_ends_the_run_with_numbers_and_leaves_no_process"],
            RL: [
                "test_a_trainer_that_dies_is_reported_with_numbers_and_remedies",
                "test_a_trainer_that_dies_while_samples_are_drawn_ahead_ends_the_run_at_once",
            ],
        },
    ),
    FaultRow(
        20,
        "too little memory in an update",
        "a message with numbers and three things to change",
        {
            RUNS: [
                "test_an_update_that_asks_for_too_much_memory_is_told_with_numbers",
                "test_a_trainer_that_dies_ends_the_run_with_numbers_and_leaves_no_process",
            ],
            "policy/test_budget.py": ["test_a_sequence_that_does_not_fit_is_refused_with_numbers_and_remedies"],
        },
    ),
    FaultRow(
        21,
        "a reward raises on some samples",
        "those only, counted; the first traceback is shown once",
        {
            RUNTIME: ["test_a_reward_that_raises_on_some_costs_those_and_shows_one_traceback"],
            RL: ["test_a_reward_that_fails_too_often_ends_the_run_and_one_that_may_is_counted"],
        },
    ),
    FaultRow(22, "a reward raises on all", "stops in the first step", {RUNTIME: ["test_a_reward_that_raises_on_all_stops_the_run"]}),
    FaultRow(
        23,
        "a reward hangs, in Python, in C, or deaf to signals",
        "killed at its deadline; the others are unaffected",
        {REWARD_FAULTS: ["test_only_the_sample_at_fault_pays", "test_a_batch_reward_that_hangs_is_stopped"]},
    ),
    FaultRow(
        24,
        "a reward's process crashes, exits, or eats memory",
        "an error for that sample only",
        {
            REWARD_FAULTS: [
                "test_only_the_sample_at_fault_pays",
                "test_a_process_killed_while_idle_is_replaced",
                "test_a_file_that_ends_its_process_while_loading_is_an_error",
            ]
        },
    ),
    FaultRow(
        25,
        "a reward returns NaN, None, text, the wrong length, a numpy scalar, a bool",
        "function and index are named; None skips; bool and numpy become float",
        {
            RUNTIME: ["test_what_may_be_returned_and_what_may_not"],
            "rewards/test_trl_style.py": ["test_the_wrong_length_names_the_function", "test_one_bad_number_costs_its_own_sample"],
        },
    ),
    FaultRow(
        26,
        "math-verify in the main thread, a thread, Ray, asyncio",
        "the same score everywhere",
        {
            "rewards/test_math.py": [
                "test_a_thread_scores_as_the_main_thread_does",
                "test_a_ray_actor_and_asyncio_score_as_the_main_thread_does",
            ]
        },
    ),
    FaultRow(
        27,
        "pathological LaTeX",
        "within the deadline; wrong, and counted as undecidable",
        {REWARD_FAULTS: ["test_pathological_latex_is_undecidable_within_the_deadline"]},
    ),
    FaultRow(
        28,
        "a gold answer that is empty or can't be read",
        "reported with its row before training; its samples have no score, and are counted",
        {
            "rewards/test_math.py": ["test_a_gold_answer_that_cannot_be_read_abstains"],
            CANARY: [
                "test_a_gold_answer_that_does_not_score_one_is_shown_with_its_row",
                "test_gold_answers_that_cannot_be_read_are_found_among_all",
            ],
            "stages/test_trying_rewards.py": ["test_gold_answers_that_cannot_be_read_are_said_before_training"],
        },
    ),
    FaultRow(
        29,
        "a gold answer scores 0, or another row's scores 1",
        "no start; the rows are shown",
        {
            CANARY: [
                "test_a_reward_that_is_always_pleased_is_caught",
                "test_a_verifier_that_never_says_yes_is_refused_with_all_eight_rows",
            ],
            "stages/test_start.py": ["test_rewards_that_cannot_be_trusted_are_refused_with_eight_rows"],
            RL: ["test_a_reward_that_calls_everything_right_is_found_out_before_anything_is_trained"],
        },
    ),
    FaultRow(
        30,
        "equal rewards in a group, in all groups; a group of one",
        "advantage exactly 0; bounded drawing of others; a group of one is bad input",
        {
            "algorithm/test_advantages.py": [
                "test_a_group_of_equal_rewards_has_exactly_zero_advantage",
                "test_a_group_with_fewer_than_two_counted_rewards_has_zero_advantage",
            ],
            "stages/test_dynamic.py": ["test_data_too_easy_or_too_hard_end_after_the_last_round_with_a_full_step_and_a_warning"],
            MISTAKES: ["test_ten_mistakes_come_out_at_once_each_with_its_line"],
        },
    ),
    FaultRow(
        31,
        "all completions truncated, masked or empty",
        "finite loss; the update is skipped, and said",
        {
            "algorithm/test_losses.py": ["test_an_empty_mask_has_zero_weights"],
            TRAINER: [
                "test_samples_with_advantage_but_without_tokens_are_left_out_and_raise_no_alarm",
                "test_a_minibatch_without_tokens_keeps_its_place_among_several",
            ],
            RL: ["test_a_step_in_which_all_is_masked_is_skipped_and_said_so"],
        },
    ),
    FaultRow(
        32,
        "pad = eos; an id outside the vocabulary",
        "masks go by length; a bad id is an error",
        {
            TEMPLATES: ["test_without_a_pad_token_or_with_the_end_token_as_pad_nothing_is_amiss"],
            "policy/test_batch.py": ["test_the_loss_is_on_the_tokens_that_the_policy_wrote"],
            POOL: ["test_token_ids_outside_the_vocabulary_are_errors"],
        },
    ),
    FaultRow(
        33,
        "prompts at the limit, over it, all over",
        "left out and counted; all over is an error",
        {"stages/test_workplace_data.py": ["test_prompts_at_the_limit_fit_and_those_over_it_are_counted"]},
    ),
    FaultRow(
        34,
        "malformed rows: bad JSON, nulls, types, BOM, CRLF, surrogates, 10 MB",
        "file and line; none silently dropped",
        {
            FILES: [
                "test_a_bad_line_is_said_by_its_number_and_the_others_are_read",
                "test_a_bad_list_is_said_by_line",
                "test_a_bad_csv_line_is_said",
                "test_a_field_of_ten_megabytes_is_read_whole",
                "test_a_cut_parquet_file_is_said",
            ],
            SOURCES: [
                "test_every_bad_line_is_named_with_its_file_and_number",
                "test_a_bad_row_is_said_by_file_and_line_beside_all_others",
                "test_a_byte_order_mark_and_windows_line_ends_are_read_over",
            ],
        },
    ),
    FaultRow(
        35,
        "a missing or renamed column",
        "what is there, and what may be meant",
        {
            SOURCES: ["test_a_missing_column_names_source_file_and_line"],
            INPUTS: ["test_a_renamed_column_is_found_by_its_meaning"],
        },
    ),
    FaultRow(
        36,
        "unknown keys, wrong types, a key twice, tabs, an empty file",
        "all at once, file:line, a suggestion, exit 2",
        {
            MISTAKES: ["test_ten_mistakes_come_out_at_once_each_with_its_line", "test_one_mistake_is_one_line"],
            YAML: ["test_a_key_written_twice_is_named_with_both_lines", "test_all_indenting_tabs_are_named"],
            LOADING: ["test_a_file_that_is_no_recipe_is_one_line"],
            "end_to_end/test_bad_input.py": ["test_all_problems_of_a_recipe_come_together_and_nothing_is_written"],
        },
    ),
    FaultRow(
        37,
        "settings that contradict each other",
        "explained before any model is loaded",
        {
            "config/test_contradictions.py": ["test_a_contradiction_is_one_line"],
            "end_to_end/test_bad_input.py": ["test_bad_input_loads_neither_torch_nor_ray"],
        },
    ),
    FaultRow(
        38,
        "no chat template, no pad, no eos",
        "defined, or a clear error",
        {
            TEMPLATES: [
                "test_chat_without_a_chat_template_says_what_to_set",
                "test_without_a_pad_token_or_with_the_end_token_as_pad_nothing_is_amiss",
                "test_no_end_token_and_another_one_in_the_models_configuration_are_said",
            ]
        },
    ),
    FaultRow(
        39,
        "log-probabilities that are not finite; trainer and engine drift apart",
        "such tokens are left out and counted, while the gradient stays finite (else 41); half of the gap's bound is said, above it the run stops",
        {
            TRAINER: [
                "test_a_gap_above_the_bound_stops_before_any_weight_changes",
                "test_the_gap_is_watched_even_where_no_sample_has_an_advantage",
                "test_a_token_whose_log_probability_is_not_finite_is_left_out_of_the_loss",
            ],
            "policy/test_batch.py": ["test_tokens_whose_log_probability_by_the_engine_is_not_finite_do_not_count"],
            "stages/test_rl_step.py": ["test_a_gap_on_its_way_to_the_bound_is_said_once_and_odd_log_probabilities_are_counted"],
        },
    ),
    FaultRow(
        40,
        "a weight sync that is partial, stale, transposed, of another type",
        "tried once more, then an error that names the tensor",
        {
            "rollout/test_weights.py": [
                "test_a_dropped_tensor_is_named",
                "test_a_stale_tensor_is_named",
                "test_a_transposed_tensor_is_named",
                "test_a_tensor_of_another_size_is_named",
            ],
            POOL: ["test_a_sync_that_fails_twice_names_the_tensor"],
            RL: ["test_a_corrupted_sync_stops_the_run_and_names_the_tensor"],
        },
    ),
    FaultRow(
        41,
        "a NaN gradient once; three times in a row",
        "skipped, the batch kept, the schedule unchanged; then a stop",
        {
            TRAINER: ["test_a_gradient_that_is_not_finite_is_skipped_and_three_in_a_row_stop_the_run"],
            RL: ["test_batches_whose_gradient_is_not_finite_are_kept_and_three_in_a_row_stop_the_run"],
        },
    ),
    FaultRow(
        42,
        "hostile code under the code reward",
        "contained, within the deadline, nothing left running; without a sandbox refused",
        {
            HOSTILE: [
                "test_host_files_home_and_environment_are_absent",
                "test_there_is_no_network",
                "test_a_fork_bomb_gets_few_processes",
                "test_a_gigabyte_of_memory_is_refused",
                "test_a_gigabyte_of_output_is_cut_off",
                "test_killing_its_parent_or_everyone_harms_itself_only",
                "test_ignoring_signals_does_not_help",
                "test_a_daemon_ends_with_its_sandbox",
                "test_a_step_of_attacks_costs_no_other_sample_anything",
            ],
            "rewards/test_code.py": ["test_without_bwrap_it_is_refused", "test_a_bwrap_that_does_not_work_is_refused"],
        },
    ),
    FaultRow(
        43,
        "a pickle, a YAML tag, a template reaching out, HTML or escapes in a completion, ../ in a name",
        "refused or escaped",
        {
            SECURITY: [
                "test_weights_in_a_pickle_are_refused_and_not_read",
                "test_code_that_a_model_brings_is_not_run",
                "test_nothing_of_ours_unpickles_or_runs_what_it_reads",
                "test_what_a_model_wrote_commands_no_terminal",
                "test_a_name_stays_in_the_runs_folder",
            ],
            YAML: ["test_tags_that_would_make_objects_are_refused"],
            TEMPLATES: ["test_a_template_reaches_nothing_outside_of_it"],
            "run/test_report.py": ["test_no_html_of_a_completion_survives", "test_nothing_else_of_a_run_is_taken_for_html_either"],
        },
    ),
    FaultRow(
        44,
        "hub or tracker down; a port taken; someone else's network, cluster, home or limits",
        "training goes on, logs are complete; loopback only, or a cluster's interface with its token",
        {
            TRACKERS: ["test_one_that_cannot_start_is_complained_about_once", "test_one_that_hangs_is_left_behind_and_the_others_are_not"],
            RL: ["test_a_tracker_that_fails_stops_nothing"],
            SOURCES: ["test_what_the_hub_refuses_is_said_with_the_source"],
            PORTS: [
                "test_all_listeners_are_on_the_loopback_interface_whatever_ports_are_taken",
                "test_a_cluster_asks_for_its_token",
                "test_a_cluster_that_is_not_there_is_told_in_a_line",
            ],
            RUNS: ["test_no_process_of_a_run_listens_beyond_the_loopback_interface"],
        },
    ),
)


def as_markdown() -> str:
    lines = ["| # | fault | what it leads to | tests, below tests/ |", "|---|---|---|---|"]
    lines += [f"| {row.number} | {row.fault} | {row.promise} | {', '.join(f'`{file}`' for file in row.tests)} |" for row in ROWS]
    return "\n".join(lines)


if __name__ == "__main__":
    print(as_markdown())
