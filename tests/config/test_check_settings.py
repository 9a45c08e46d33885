"""Settings that are right one by one and wrong together, each explained with a remedy."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Problems = Callable[..., list[str]]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stages.reason.warmup_updates=13", "is more than the stage's 12 updates"),
        ("stages.reason.updates_per_rollout=3", "16 prompts cannot be divided equally among 3 updates; make prompts_per_step"),
        (
            "stages.reason={max_completion_tokens: 7681, max_tokens_per_micro_batch: 8192}",
            "= 8193 is more than max_tokens_per_micro_batch 8192: the longest sample would not fit",
        ),
        (
            "stages.reason.clip_low=10",
            "clip_low 10 puts the lower bound of the ratio at -9, which no ratio can reach; write a number from 0 to 1",
        ),
        ("stages.reason.top_p=0.95", "top_p 0.95 samples from a truncated distribution, but the trainer computes"),
        ("stages.reason.top_k=20", "top_k 20 samples from a truncated distribution"),
        ("stages.reason.min_learning_rate=1", "min_learning_rate 1 is above learning_rate 1e-06"),
        (
            "stages.reason={kl_in: reward, kl_coef: 0}",
            "kl_in: reward subtracts kl_coef times the KL divergence from the reward, but kl_coef is 0",
        ),
        ("stages.reason={importance: none, importance_cap: 3}", "importance_cap 3 has no effect with importance: none"),
        ("stages.reason={lora: {}, refresh_reference_every: 9}", "with lora the reference is the frozen weights below the adapters"),
        ("stages.reason.eval_every=5", "eval_every needs a held-out set: write evaluation: {prompts: ...}"),
        ("stages.reason.rewards.0.weight=0", "all rewards have weight 0, so every advantage would be 0"),
        ("stages.reason.rewards.0.weight=[[3, 1]]", "from update 0 on all rewards have weight 0"),
        ("stages.reason.rewards.0.weight=[[0, 1], [6, 0]]", "from update 6 on all rewards have weight 0, so every advantage would be 0"),
        ("stages.reason.rewards=[{use: math}, {use: format, weight: [[9, 1], [3, 0]]}]", "weight schedule must increase; found [9, 3]"),
        ("stages.reason.rewards=[{use: math}, {use: format, weight: [[3, 1], [3, 2]]}]", "weight schedule must increase; found [3, 3]"),
        (
            "stages.reason.rewards=[{use: math}, {use: format, weight: [[12, 1]]}]",
            "at update 12, but the stage's last step begins after 11",
        ),
        (
            "stages.reason.rewards=[{use: math}, {use: format, weight: [[3]]}]",
            "is a list of [update, weight], such as [[0, 1.0], [400, 0.5]]",
        ),
        ("stages.reason.rewards=[{use: math}, {use: format, weight: [[0.5, 1]]}]", "with whole updates from 0"),
        ("stages.reason.rewards=[{use: math}, {use: format, weight: []}]", "is a list of [update, weight]"),
        (
            "stages.harvest.rewards.0.weight=[[0, 1]]",
            "the weight of reward 'math' is a schedule, which only a stage of kind rl can follow",
        ),
        ("stages.harvest.rewards=[{use: math, weight: [[0, 1]]}]", "which only a stage of kind rl can follow; write a number"),
        ("stages.reason.rewards=[{use: math}, {use: math}]", "two rewards are named 'math'; give one of them another name"),
        (
            "stages.reason.rewards=[{use: math, on_error: stop, max_error_frac: 0.1}]",
            "on_error: stop ends the run at the first failure, but max_error_frac 0.1 allows some; delete one of them",
        ),
        (
            "stages.cold={epochs: 2, curriculum: {phases: [{updates: 5}]}}",
            "epochs and curriculum both set the number of updates; delete one of them",
        ),
        (
            "stages.cold.curriculum={by: answer, phases: [{updates: 5, mix: {easy: 0}}]}",
            "every weight of mix is 0; write one for easy, medium",
        ),
        ("stages.cold.curriculum={phases: [{updates: 5, mix: {easy: 1}}]}", "data source 'sums': column 'pass_rate' not found"),
        (
            "stages.cold={warmup_updates: 9, curriculum: {phases: [{updates: 5}, {updates: 3}]}}",
            "warmup_updates 9 is more than the 8 updates of all phases",
        ),
        (
            "stages.cold.validation={every: 5, by: accuracy}",
            "validation by accuracy needs a held-out set: write evaluation: {prompts: ...}",
        ),
        (
            "stages.cold.replay=0.05",
            "replay needs an earlier stage of kind sft or distill with data, and there is none",
        ),
        ("stages.cold.earlier=[reason]", "earlier needs replay or ewc"),
        (
            "stages.harvest={name: more, kind: sft, from: cold, data: sums, replay: 0.1, earlier: [reason, cold]}",
            "'reason' is not an earlier stage of kind sft or distill with data; it can be one of [cold]",
        ),
        (
            "stages.harvest={name: more, kind: sft, from: cold, data: sums, ewc: {coef: 1}, lora: {}}",
            "ewc protects weights that lora does not change; delete one of them",
        ),
        ("stages.cold.max_tokens_per_micro_batch=1000", "max_tokens 1024 is more than max_tokens_per_micro_batch 1000"),
        (
            "stages.harvest.keep={min_reward: {mth: 1}}",
            "keep.min_reward asks for 'mth', which is not among the stage's rewards [math]; did you mean 'math'?",
        ),
        (
            "stages.harvest.rewards=[{use: format}]",
            "keep.min_reward asks for 'math' (the default), which is not among the stage's rewards [format]",
        ),
        ("stages.harvest.keep={per_prompt: 9}", "keep.per_prompt 9 is more than samples_per_prompt 8"),
        ("evaluation={prompts: sums}", "'sums' is the held-out set, but [cold, reason, harvest] train on it; use another"),
        (
            "stages.harvest={name: e, kind: eval, evaluation: {prompts: sums, pass_at: [1, 8]}}",
            "pass@8 cannot be estimated from 1 samples per prompt; raise samples_per_prompt to 8",
        ),
        ("stages.reason.prompts=[sums, sums]", "'sums' is listed twice"),
        (
            "stages.reason.curriculum={by: answer, phases: [{from_step: 1, easiest_frac: 0.5}]}",
            "phases must begin at step 0 and each after the one before it; found from_step [1]",
        ),
        (
            "stages.reason.curriculum={by: answer, phases: [{from_step: 0, easiest_frac: 0.5}, {from_step: 12, easiest_frac: 1.0}]}",
            "the last phase begins at step 12, but the last of 12 steps is 11",
        ),
        (
            "stages.reason={prompts: [{use: sums, weight: 1}], curriculum: {by: answer, phases: [{from_step: 0, easiest_frac: 1.0}]}}",
            "a curriculum chooses prompts by difficulty, and weights choose them by source; delete one of them",
        ),
        ("data.sums.filters={min_prompt_tokens: 9, max_prompt_tokens: 8}", "min_prompt_tokens 9 is above max_prompt_tokens 8, so no row"),
        ("data.sums.filters={language: english}", "unknown language 'english'; languages are [en, "),
        ("data.sums.revision=main", "revision belongs to Hub datasets, but data source 'sums' is a general; delete it"),
        ("data.sums.measured_by=math", "measured_by needs measured or measured_in"),
        ("rollout.engine=scripted", "the scripted engine needs a script: ./file.py:name"),
        ("stages.reason.min_p=0.1", "min_p 0.1 samples from a truncated distribution"),
        (
            "trainer={shard: gradients}",
            "shard: gradients needs several ranks, and there is one; raise ranks or delete shard",
        ),
        ("tags={think: a, answer: a}", "thinking and answer have the same tag"),
        ("data.sums.general=false", "data source 'sums' does not say where its rows come from; write one of [reasoning_gym, jsonl, "),
        ("data.sums.settings={a: 1}", "settings belong to reasoning_gym and generator, but data source 'sums' is a general"),
    ],
)
def test_a_contradiction_is_one_line(override: str, words: str, problems: Problems, sound: str) -> None:
    (line,) = problems(sound, override)
    assert words in line


@pytest.mark.parametrize(
    ("rollout", "others", "words"),
    [
        ("{weight_change: in_flight}", ["deterministic=false"], "but max_staleness is 0; raise it"),
        ("{weight_change: in_flight, max_staleness: 1}", [], "so the run cannot repeat bit for bit; write deterministic: false"),
        (
            "{weight_change: in_flight, max_staleness: 1, sync: rebuild}",
            ["deterministic=false"],
            "in_flight continues unfinished samples, but sync: rebuild starts an engine without them; delete one of them",
        ),
        (
            "{sleep: true, max_staleness: 1}",
            [],
            "sleep stops the engines while the trainer works, but max_staleness 1 samples during training",
        ),
        (
            "{sleep: true, transport: cuda_ipc}",
            [],
            "cuda_ipc takes new weights from the trainer's GPU, where sleep leaves none",
        ),
        ("{sleep: true, gpus_per_worker: 2}", [], "sleep works on one GPU, but gpus_per_worker is 2; delete one of them"),
        ("{gpus_per_worker: 2, engine: hf}", [], "gpus_per_worker 2 splits vLLM's layers, but the engine is hf; delete it"),
        (
            "{max_staleness: 1, transport: cuda_ipc}",
            [],
            "take turns on one GPU, but max_staleness 1 samples during training; delete one of them",
        ),
        (
            "{gpus_per_worker: 2, transport: cuda_ipc}",
            [],
            "cuda_ipc passes memory within one GPU, but gpus_per_worker is 2; use host or nixl",
        ),
        ("{gpus_per_worker: 2, sync: in_place}", [], "cannot verify weights that were replaced in place; delete sync"),
        (
            "{max_staleness: 2}",
            ["stages.reason.importance=none"],
            "max_staleness 2 trains on samples of older weights, but importance: none does not correct for that; delete one of them",
        ),
    ],
)
def test_settings_of_the_engines_that_cannot_be_right_together(
    rollout: str, others: list[str], words: str, problems: Problems, sound: str
) -> None:
    (line,) = problems(sound, f"rollout={rollout}", *others)
    assert words in line


def test_in_a_mixture_all_have_weights_or_none(problems: Problems, sound: str) -> None:
    text = sound.replace("data:\n", "data:\n  more: {general: true, seed: 1}\n")
    assert problems(text, "stages.reason.prompts=[sums, more]") == []
    assert problems(text, "stages.reason.prompts=[{use: sums, weight: 2}, {use: more, weight: 1}]") == []
    (line,) = problems(text, "stages.reason.prompts=[{use: sums, weight: 2}, more]")
    assert "'more' has no weight but others do; write {use: more, weight: ...}" in line
    (line,) = problems(text, "stages.reason.prompts=[{use: sums, weight: 2}, {use: moore, weight: 1}]")
    assert "takes its prompts from 'moore', which does not exist" in line and "did you mean 'more'" in line


def test_dynamic_sampling_cannot_know_the_next_step_ahead(problems: Problems, sound: str) -> None:
    (line,) = problems(sound, "stages.reason.dynamic_sampling={max_rounds: 2}", "rollout.max_staleness=1")
    assert "max_staleness samples the next step before it is known which groups of this step must be replaced" in line


def test_a_data_source_names_one_source(problems: Problems, sound: str) -> None:
    (line,) = problems(sound.replace("{general: true, rows: 20}", "{general: true, hub: org/name}"))
    assert line == "r.yaml:4: data.sums.general: data source 'sums' has 2 source keys, [hub, general]; keep one"


def test_a_contradiction_stands_at_the_line_of_a_setting_that_makes_it(problems: Problems, sound: str) -> None:
    (line,) = problems(sound.replace("steps: 12", "warmup_updates: 13\n    steps: 12"))
    assert line.startswith("r.yaml:14: stages.reason.warmup_updates: warmup_updates 13 is more than the stage's 12 updates")


@pytest.mark.parametrize(
    "override",
    [
        "stages.reason.clip_low=1",
        "stages.reason.warmup_updates=12",
        "stages.harvest.top_p=0.9",
        "stages.reason.rewards=[{use: math, weight: [[0, 1], [5, 0]]}, {use: format, weight: [[5, 0.5], [11, 1]]}]",
    ],
)
def test_the_edge_of_what_is_allowed_is_allowed(override: str, problems: Problems, sound: str) -> None:
    assert problems(sound, override) == []


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("", "stage 's' has nothing to learn from; write teacher (a stage that answers prompts) or data (existing rows)"),
        (
            "teacher: reason, data: harvest, prompts: sums, rewards: [{use: math}]",
            "stage 's' has both a teacher, which would write its rows, and data",
        ),
        ("teacher: reason, rewards: [{use: math}]", "the teacher of stage 's' has no prompts to answer; write prompts: ..."),
        ("data: harvest, prompts: sums", "prompts need a teacher, and this stage learns from data; delete prompts"),
        ("teacher: reason, prompts: sums", "keep.min_reward asks for 'math' (the default), which is not among the stage's rewards []"),
    ],
)
def test_a_student_learns_from_a_teacher_or_from_rows_never_both(keys: str, words: str, problems: Problems, sound: str) -> None:
    (line,) = problems(f"{sound}  - {{name: s, kind: distill, from: base, {keys}}}\n")
    assert line.startswith("r.yaml:20: stages.s") and words in line


def test_an_evaluation_needs_a_held_out_set(problems: Problems, sound: str) -> None:
    stage = "  - {name: e, kind: eval}\n"
    assert problems(sound + stage) == [
        "r.yaml:20: stages.e: stage 'e' has nothing to evaluate on: write evaluation: {prompts: ...} in the stage or in the recipe"
    ]
    held_out = sound.replace("data:\n", "data:\n  held_out: {general: true, seed: 1}\n")
    assert problems(held_out + stage + "evaluation: {prompts: held_out}\n") == []


def test_a_contradiction_with_a_value_that_was_not_read_is_not_reported(problems: Problems, sound: str) -> None:
    """max_tokens_per_micro_batch is unreadable, so nothing is said of what doesn't fit into its default."""
    (line,) = problems(sound, "stages.reason.max_tokens_per_micro_batch=many", "stages.reason.max_completion_tokens=9000")
    assert "found 'many'" in line


def test_the_hidden_size_of_a_tiny_model_is_a_multiple_of_its_heads(problems: Problems, sound: str) -> None:
    lines = problems(sound.replace("org/base", "{make: tiny_qwen2, problems: sums, heads: 5}"))
    assert any("hidden_size 192 is not a multiple of heads 5" in line for line in lines)
