"""Names in a recipe lead to things of the right type that are made before they are used."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Problems = Callable[..., list[str]]

STUDENT = "  - {name: student, kind: distill, from: base, %s}\n"


def test_a_sound_recipe_has_no_problems(problems: Problems, sound: str) -> None:
    assert problems() == []
    assert problems(sound + STUDENT % "teacher: reason, prompts: sums, rewards: [{use: math}]") == []
    assert problems(sound + STUDENT % "data: harvest") == []
    second = "  - {name: second, kind: sft, data: [harvest, sums]}\n"
    last = "  - {name: last, kind: rl, from: second, prompts: harvest, rewards: [{use: math}], steps: 1}\n"
    assert problems(sound + second + last) == []


@pytest.mark.parametrize(
    ("stage", "problem"),
    [
        (
            "{name: s, kind: sft, from: harvest, data: sums}",
            "from: stage 's' starts from 'harvest', which is a dataset (kind: reject); name a stage of kind sft, rl or distill, or 'base'",
        ),
        (
            "{name: s, kind: sft, from: sums, data: sums}",
            "from: stage 's' starts from 'sums', which is a data source; name a stage of kind sft, rl or distill, or 'base'",
        ),
        (
            "{name: s, kind: sft, from: resaon, data: sums}",
            "from: stage 's' starts from 'resaon', which does not exist; it can be one of [base, cold, reason]; did you mean 'reason'?",
        ),
        (
            "{name: s, kind: sft, from: s, data: sums}",
            "from: stage 's' starts from 's', which is itself; name a stage of kind sft, rl or distill, or 'base'",
        ),
        (
            "{name: s, kind: sft, data: reason}",
            "data: stage 's' takes its rows from 'reason', which is a model (kind: rl); name a data source or a stage of kind reject",
        ),
        (
            "{name: s, kind: sft, data: [sums, base]}",
            "data.1: stage 's' takes its rows from 'base', which is the recipe's model; name a data source or a stage of kind reject",
        ),
        (
            "{name: s, kind: rl, prompts: cold, rewards: [{use: math}], steps: 1}",
            "prompts: stage 's' takes its prompts from 'cold', which is a model (kind: sft); name a data source or a stage of kind reject",
        ),
        (
            "{name: s, kind: reject, prompts: sums, rewards: [{use: math}], mix: [{use: cold}]}",
            "mix.0.use: stage 's' mixes in 'cold', which is a model (kind: sft); name a data source or a stage of kind reject",
        ),
        (
            "{name: s, kind: distill, from: {path: a/b}, teacher: harvest, prompts: sums, rewards: [{use: math}]}",
            "teacher: stage 's' is taught by 'harvest', which is a dataset (kind: reject); "
            "name a stage of kind sft, rl or distill, or 'base'",
        ),
        (
            "{name: s, kind: distill, from: org/name, data: sums}",
            "from: stage 's' starts from 'org/name', which does not exist; it can be one of [base, cold, reason]; "
            "for another model write {path: ...} or {make: ...}",
        ),
        (
            "{name: s, kind: eval, evaluation: {prompts: smus}}",
            "evaluation.prompts: an evaluation's prompts must be a data source, found 'smus', which does not exist; "
            "sources are [sums]; did you mean 'sums'?",
        ),
    ],
)
def test_a_name_that_leads_to_the_wrong_thing(stage: str, problem: str, problems: Problems, sound: str) -> None:
    assert problems(f"{sound}  - {stage}\n") == [f"r.yaml:20: stages.s.{problem}"]


def test_a_stage_cannot_use_what_comes_after_it(problems: Problems, sound: str) -> None:
    (line,) = problems(sound.replace("from: cold", "from: cold2") + "  - {name: cold2, kind: sft, data: sums}\n")
    assert line.startswith("r.yaml:11: stages.reason.from: stage 'reason' starts from 'cold2', which comes after it; move 'cold2' up, or ")


def test_nothing_starts_from_an_evaluation(problems: Problems, sound: str) -> None:
    text = sound + "  - {name: e, kind: eval, evaluation: {prompts: sums}}\n  - {name: s, kind: sft, from: e, data: sums}\n"
    (line,) = problems(text)
    assert "starts from 'e', which makes no model and no dataset (kind: eval)" in line


def test_a_name_means_one_thing(problems: Problems, sound: str) -> None:
    text = sound.replace("rows: 20}", "rows: 20}\n  base: {general: true}") + "".join(
        f"  - {{name: {name}, kind: sft, data: sums}}\n" for name in ("base", "sums", "cold")
    )
    assert problems(text) == [
        "r.yaml:5: data.base: a data source cannot be named 'base', which means the recipe's model; rename it",
        "r.yaml:21: stages.base.name: a stage cannot be named 'base', which means the recipe's model; rename it",
        "r.yaml:21: stages.base.name: a stage and a data source are both named 'base'; rename one of them",
        "r.yaml:22: stages.sums.name: a stage and a data source are both named 'sums'; rename one of them",
        "r.yaml:23: stages.cold.name: two stages are named 'cold'; rename one of them",
    ]


def test_the_recipes_evaluation_and_disjoint_from_name_data_sources(problems: Problems, sound: str) -> None:
    text = sound.replace("rows: 20}", "rows: 20, disjoint_from: [held_out, reason]}") + "evaluation: {prompts: harvest}\n"
    assert problems(text) == [
        "r.yaml:4: data.sums.disjoint_from.0: disjoint_from must be a data source, found 'held_out', which does not exist; "
        "sources are [sums]",
        "r.yaml:4: data.sums.disjoint_from.1: disjoint_from must be a data source, found 'reason', which is a stage; sources are [sums]",
        "r.yaml:20: evaluation.prompts: an evaluation's prompts must be a data source, found 'harvest', which is a stage; "
        "sources are [sums]",
    ]


def test_disjoint_from_in_a_circle_is_one_problem(problems: Problems, sound: str) -> None:
    text = sound.replace(
        "rows: 20}", "disjoint_from: [b]}\n  b: {general: true, disjoint_from: [c]}\n  c: {general: true, disjoint_from: [b]}"
    )
    assert problems(text) == ["r.yaml:5: data.b.disjoint_from: circular disjoint_from: b -> c -> b; remove it from one of them"]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("measured_in: harvest", []),
        (
            "measured_in: cold",
            ["measured_in must be a stage of kind eval or reject or rl, found 'cold', which is of kind sft; it can be one of"],
        ),
        (
            "measured_in: harvset",
            ["found 'harvset', which does not exist; it can be one of [reason, harvest, late]; did you mean 'harvest'?"],
        ),
        ("measured_in: late", ["stage 'late' uses rows of 'hard', which stage 'late' has not measured yet"]),
        (
            "measured_in: harvest, measured: a.jsonl",
            ["measured and measured_in both give the prompts a pass rate", "a.jsonl does not exist"],
        ),
    ],
)
def test_prompts_are_measured_in_a_stage_before_those_that_need_it(keys: str, words: list[str], problems: Problems, sound: str) -> None:
    late = "  - {name: late, kind: rl, from: cold, prompts: hard, rewards: [{use: math}], steps: 2}\n"
    lines = problems(sound.replace("data:\n", f"data:\n  hard: {{general: true, {keys}}}\n") + late)
    assert len(lines) == len(words)
    assert all(any(text in line for line in lines) for text in words), lines


def test_nothing_that_runs_before_all_stages_waits_for_one(problems: Problems, sound: str) -> None:
    hard = "data:\n  hard: {general: true, measured_in: harvest}\n  other: {general: true, disjoint_from: [hard]}\n"
    lines = problems(sound.replace("data:\n", hard) + "evaluation: {prompts: hard}\n")
    assert len(lines) == 2
    assert "data source 'other' needs the rows of 'hard' from the start" in lines[0]
    assert "the evaluation needs the rows of 'hard' from the start, but stage 'harvest' measures them" in lines[1]
