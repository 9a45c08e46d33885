"""What the schema has against a recipe: one line for each mistake, all at once, with the right line and a remedy."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grpo.config import RlStage
from grpo.util import text

Problems = Callable[..., list[str]]
ROOT = Path(__file__).parents[2]


def test_ten_mistakes_come_out_at_once_each_with_its_line(problems: Problems) -> None:
    text = """\
    name: ten mistakes
    model: {make: tiny_qwen2, problems: sums, layrs: 3}
    rolout: {workers: 2}
    data:
      sums: {general: yes, rows: 20}
      sums: {general: true}
    stages:
      - {name: cold, kind: stf, data: sums}
      - name: reason
        kind: rl
        from: harvest
        prompts: smus
        rewards: [{use: math}]
        stepz: twelve
        samples_per_prompt: 1
      - {name: harvest, kind: reject, from: reason, prompts: sums}
    """
    assert problems(text) == [
        "r.yaml:1: name: expected text that matches ^[A-Za-z0-9][A-Za-z0-9_.-]*$, at most 80 characters, found 'ten mistakes'",
        "r.yaml:2: model.layrs: unknown key 'layrs'; did you mean 'layers'?",
        "r.yaml:3: rolout: unknown key 'rolout'; did you mean 'rollout'?",
        "r.yaml:5: data.sums.general: expected true or false, found 'yes'; write true (short rule-made instructions that are not sums)",
        "r.yaml:6: key 'sums' is written twice in one mapping (first on line 5); keep one",
        "r.yaml:8: stages.cold.kind: no kind of stage is called 'stf'; kinds are [sft, rl, reject, distill, eval]; did you mean 'sft'?",
        "r.yaml:11: stages.reason.from: stage 'reason' starts from 'harvest', which comes after it; "
        "move 'harvest' up, or name a stage of kind sft, rl or distill, or 'base'",
        "r.yaml:12: stages.reason.prompts: stage 'reason' takes its prompts from 'smus', which does not exist; "
        "it can be one of [sums]; did you mean 'sums'?",
        "r.yaml:14: stages.reason.stepz: unknown key 'stepz'; did you mean 'steps'?",
        "r.yaml:14: stages.reason.steps: expected a whole number above 0, found 'twelve'",
        "r.yaml:15: stages.reason.samples_per_prompt: expected a whole number of at least 2, found 1 "
        "(the advantage of a group of one is always 0)",
        "r.yaml:16: stages.harvest.rewards: key 'rewards' is missing; write a list (1 or more) of a mapping {use: ...}",
    ]


def test_a_value_under_a_key_that_was_guessed_at_is_not_judged(problems: Problems, sound: str) -> None:
    """reward_dead resembles reward_deadline_s, but nobody said that its value is one; stepz can hardly be anything but steps."""
    assert problems(sound + "reward_dead: [1]\n") == [
        "r.yaml:20: reward_dead: unknown key 'reward_dead'; did you mean 'reward_deadline_s'?"
    ]


def test_a_kind_that_is_an_algorithm_is_rl(problems: Problems, sound: str) -> None:
    (line,) = problems(sound.replace("kind: rl", "kind: grpo"))
    assert line.endswith("no kind of stage is called 'grpo'; kinds are [sft, rl, reject, distill, eval]; did you mean 'rl'?")


def test_keys_of_other_toolkits_are_answered_with_ours_or_with_what_to_write(problems: Problems, sound: str) -> None:
    tables = (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8").partition("## TRL")[2].partition("## open-r1")[0]
    first_columns = " ".join(line.split("|")[1] for line in tables.splitlines() if line.startswith("|"))
    theirs = {name.rpartition(".")[2] for name in re.findall(r"`([a-z_.]+)`", first_columns)}
    foreign = sorted(theirs - set(RlStage.model_fields) - {"model"})
    assert len(foreign) > 60
    said = problems(sound.replace("    steps: 12\n", "    steps: 12\n" + "".join(f"    {name}: 1\n" for name in foreign)))
    unknown = [line for line in said if "unknown key" in line]
    assert len(unknown) == len(foreign)
    assert [line for line in unknown if "known keys" in line] == []
    there = {line.partition("did you mean ")[2] for line in unknown if "which is there already" in line}
    assert there == {"'steps', which is there already?", "'rewards', which is there already?"}
    assert "unknown key 'loss_type' of another toolkit; write algorithm: grpo, dr_grpo, dapo or another" in "\n".join(said)


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("sequences_per_update", "batch_size", "stages.cold"),
        ("tokens_per_device", "max_tokens_per_micro_batch", "stages.cold"),
        ("tokens_per_device", "max_tokens_per_micro_batch", "stages.reason"),
        ("offload_optimiser", "offload_optimizer", "trainer"),
    ],
)
def test_a_key_of_an_earlier_version_is_answered_with_its_new_name(old: str, new: str, place: str, problems: Problems, sound: str) -> None:
    value = "false" if place == "trainer" else "2000"
    assert [line.split(": ", 2)[2] for line in problems(sound, f"{place}.{old}={value}")] == [f"unknown key {old!r}, now called {new!r}"]


def test_known_keys_are_listed_once_for_a_mapping(problems: Problems, sound: str) -> None:
    cold, first, second = problems(sound, "stages.cold.fsdp=1", "stages.reason.bf16=1", "stages.reason.fsdp=1")
    assert "known keys are [" in cold and "known keys are [" in first
    assert second.endswith("unknown key 'fsdp'; the known keys are listed at 'bf16'")


def test_comparisons_grow_linearly_with_unknown_keys(problems: Problems, sound: str) -> None:
    def num_comparisons(num_unknown: int) -> int:
        before = sum(text._closest.cache_info()[:2])
        lines = "".join(f"    zz{number}_qq: 1\n" for number in range(num_unknown))
        assert len(problems(sound.replace("    steps: 12\n", f"    steps: 12\n{lines}"))) == num_unknown
        return sum(text._closest.cache_info()[:2]) - before

    assert num_comparisons(80) < 2.2 * num_comparisons(40)


def one(problems: Problems, sound: str, old: str, new: str) -> str:
    """The one problem of the sound recipe with ``old`` replaced, without its place."""
    assert old in sound
    (line,) = problems(sound.replace(old, new))
    return line.split(" ", 1)[1]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("steps: 12", "steps: '12'", "stages.reason.steps: expected a whole number above 0, found '12'; remove the quotes"),
        ("steps: 12", "steps: 12.0", "stages.reason.steps: expected a whole number above 0, found 12.0; write 12"),
        ("steps: 12", "steps: true", "stages.reason.steps: expected a whole number above 0, found true"),
        ("steps: 12", "steps:", "stages.reason.steps: expected a whole number above 0, found nothing"),
        ("steps: 12", "steps: [12]", "stages.reason.steps: expected a whole number above 0, found a list of 1"),
        (
            "name: sound",
            "name: 12",
            "name: expected text that matches ^[A-Za-z0-9][A-Za-z0-9_.-]*$, at most 80 characters, found 12; write '12', in quotes",
        ),
        (
            "name: sound",
            "name: ../up",
            "name: expected text that matches ^[A-Za-z0-9][A-Za-z0-9_.-]*$, at most 80 characters, found '../up'",
        ),
        ("steps: 12", "steps: 12\n    top_p: 1.5", "stages.reason.top_p: expected a number above 0 of at most 1, found 1.5"),
        ("steps: 12", "steps: 12\n    learning_rate: .inf", "stages.reason.learning_rate: expected a number above 0, found inf"),
        (
            "prompts: sums\n    rewards: [{use: math}]\n    steps",
            "prompts: [sums, 3]\n    rewards: [{use: math}]\n    steps",
            "stages.reason.prompts.1: expected text or a mapping {use: ..., weight: ...}, found 3; write '3', in quotes",
        ),
        (
            "prompts: sums\n    rewards: [{use: math}]\n    steps",
            "prompts: {a: 1}\n    rewards: [{use: math}]\n    steps",
            "stages.reason.prompts: expected text or a list of text or a mapping {use: ..., weight: ...}, found a mapping with keys [a]",
        ),
        (
            "org/base",
            "3",
            "model: expected text or a mapping {make: ..., problems: ...} or a mapping {path: ...}, found 3; write '3', in quotes",
        ),
        ("org/base", "{pth: a/b}", "model.pth: unknown key 'pth'; did you mean 'path'?"),
        ("steps: 12", "steps: 12\n    lr: 1e-5", "stages.reason.lr: unknown key 'lr'; did you mean 'learning_rate'?"),
        ("steps: 12", "steps: 12\n    clip-low: 0.1", "stages.reason.clip-low: unknown key 'clip-low'; did you mean 'clip_low'?"),
        (
            "data: sums",
            "data: sums\n    temperature: 1",
            "stages.cold.temperature: unknown key 'temperature' in a stage of kind sft; it belongs to kind rl or reject or distill",
        ),
        ("kind: rl", "kidn: rl", "stages.reason.kidn: unknown key 'kidn'; did you mean 'kind'?"),
        ("    kind: rl\n", "", "stages.reason.kind: key 'kind' is missing; write one of [sft, rl, reject, distill, eval]"),
        ("    kind: rl\n", "    kind: 3\n", "stages.reason.kind: no kind of stage is called 3; kinds are [sft, rl, reject, distill, eval]"),
        (
            "{general: true, rows: 20}",
            "{general: true, frobnicate: 20}",
            "data.sums.frobnicate: unknown key 'frobnicate'; known keys are [columns, completion, csv, ",
        ),
        (
            "[{use: math}]\n    steps",
            "[]\n    steps",
            "stages.reason.rewards: expected a list (1 or more) of a mapping {use: ...}, found an empty list",
        ),
        (
            "[{use: math}]\n    steps",
            "math\n    steps",
            "stages.reason.rewards: expected a list (1 or more) of a mapping {use: ...}, found 'math'",
        ),
        ("    steps: 12\n", "", "stages.reason.steps: key 'steps' is missing; write a whole number above 0"),
    ],
)
def test_one_mistake_is_one_line(old: str, new: str, problem: str, problems: Problems, sound: str) -> None:
    assert one(problems, sound, old, new).startswith(problem)


def test_a_missing_key_is_reported_where_its_mapping_begins(problems: Problems, sound: str) -> None:
    (line,) = problems(sound.replace("    steps: 12\n", ""))
    assert line.startswith("r.yaml:9: ")


def test_stages_must_be_a_list(problems: Problems) -> None:
    (line,) = problems("name: x\nmodel: a/b\nstages: {reason: {kind: rl}}\n")
    assert line == "r.yaml:3: stages: expected a list (1 or more) of a mapping {name: ..., kind: ...}, found a mapping with keys [reason]"


def test_an_empty_mapping_lacks_the_three_required_keys(problems: Problems) -> None:
    assert [line.split(":")[2] for line in problems("seed: 1\n")] == [" name", " model", " stages"]


def test_a_value_put_in_to_read_on_is_never_itself_reported(problems: Problems, sound: str) -> None:
    """A stage whose kind is unknown can't be judged, and neither can what starts from it."""
    (line,) = problems(sound.replace("name: cold\n    kind: sft", "name: cold\n    kind: frobnicate"))
    assert "no kind of stage is called 'frobnicate'" in line


def test_an_escape_sequence_in_a_recipe_does_not_reach_the_terminal(problems: Problems, sound: str) -> None:
    lines = problems(sound + '"\\e[31mred": 1\n')
    assert len(lines) == 1 and "\x1b" not in lines[0]


def test_a_long_value_is_cut(problems: Problems, sound: str) -> None:
    assert len(one(problems, sound, "steps: 12", f"steps: {'x' * 500}")) < 200


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ("make: tiny_qwen3", "model.make: expected one of [tiny_qwen2, tiny_llama], found 'tiny_qwen3'; did you mean 'tiny_qwen2'?"),
        ("make: tiny_qwen2, layrs: 3", "model.layrs: unknown key 'layrs'; did you mean 'layers'?"),
        (
            "make: tiny_qwen2, corpus: {wroked: 1}",
            "model.corpus.wroked: unknown key 'wroked'; known keys are [worked, guess, untagged, arithmetic]; did you mean 'worked'?",
        ),
    ],
)
def test_a_made_model_is_not_taken_for_another_way_to_get_one(keys: str, problem: str, problems: Problems, sound: str) -> None:
    text = sound.replace("org/base", f"{{problems: sums, {keys}}}").replace("{general: true, rows: 20}", "{hub: org/rows}")
    assert problems(text) == [f"r.yaml:2: {problem}"]


def mutations(data: Any, draw: Callable[[Any], Any]) -> Any:
    """The data with one value, anywhere, replaced, taken away or put under a name that isn't quite right."""
    if isinstance(data, dict | list) and data and draw(st.integers(0, 3)):
        key = draw(st.sampled_from([*data] if isinstance(data, dict) else range(len(data))))
        changed = mutations(data[key], draw)
        if isinstance(data, list):
            return [changed if index == key else item for index, item in enumerate(data)]
        name = draw(st.sampled_from([key, key, key[:-1], key + "z"]))
        return {name if old == key else old: changed if old == key else item for old, item in data.items()}
    return draw(st.sampled_from([None, True, 0, 1.5, 1e-6, "sums", "", "\n\x1b", [], {}, [[]], {"use": "math"}, {"a": 1}, float("inf")]))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_wrong_comes_out_as_lines_with_a_place(data: st.DataObject, problems: Problems, sound: str) -> None:
    recipe = yaml.safe_load(sound)
    for _ in range(data.draw(st.integers(1, 3))):
        recipe = mutations(recipe, data.draw) if isinstance(recipe, dict) and recipe else recipe
    for line in problems(yaml.safe_dump(recipe, sort_keys=False)):
        assert line.startswith("r.yaml:") and line.isprintable()
