"""The reward of sample j of prompt i stands on sample j of prompt i, and so does its advantage."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from grpo.algorithm import GRPO, TABLE, Algorithm, load_algorithm
from grpo.algorithm.advantages import group_centre
from grpo.config import RewardUse, RlStage, Tags
from grpo.config.load import load_recipe
from grpo.errors import TrainingError
from grpo.resources.scoring import score_groups, score_inputs, weights_at
from grpo.rl.advantages import group_advantages, has_signal
from grpo.rl.context import asks_for_form
from grpo.rl.step_metrics import group_metrics, over_updates, reward_failures, reward_latency
from grpo.run.monitor import Watch
from grpo.run.records import JsonLines
from grpo.stages.rl import watch_over
from grpo.types import Group, Sample
from rewards import RewardRuntime, RewardSpec
from rollout.types import Completion, Prompt

MINE = '''
def near(completion, answer):
    """Minus how far the number is from the answer; "?" cannot be judged."""
    return None if completion == "?" else -abs(int(completion) - answer)

def drawn(prompt_id, num_tokens, finish, prefill):
    return {"a": 1, "b": 2}[prompt_id] * 100 + num_tokens * 10 + (finish == "length") + (prefill == "<think>") * 1000
'''


def completion(text: str, num_tokens: int = 1, finish: str = "stop") -> Completion:
    return Completion.of((9,) * num_tokens, (-1.0,) * num_tokens, (True,) * num_tokens, text, finish, ((0, 0),))  # type: ignore[arg-type]


PROMPTS = [Prompt("a", (1,), {"answer": 10, "completion": "of the data"}), Prompt("b", (2,), {"answer": 20}, prefill="<think>")]
DRAWN = [
    [completion("10"), completion("12", 2), completion("?", 3)],
    [completion("20", 4), completion("27", 5, "length"), completion("21", 6)],
]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    return tmp_path


def test_rewards_land_on_the_samples_they_were_given_for(base: Path) -> None:
    specs = [RewardSpec("./mine.py:near", required=True), RewardSpec("./mine.py:drawn", weight=0.0)]
    with RewardRuntime(specs, base=base) as runtime:
        groups = score_groups(runtime, PROMPTS, DRAWN)
    assert [group.prompt for group in groups] == PROMPTS
    assert [[sample.completion for sample in group.samples] for group in groups] == DRAWN
    assert [[sample.parts["near"] for sample in group.samples] for group in groups] == [[0, -2, None], [0, -7, -1]]
    assert [[sample.reward for sample in group.samples] for group in groups] == [[0, -2, None], [0, -7, -1]]
    assert [[sample.parts["drawn"] for sample in group.samples] for group in groups] == [[110, 120, 130], [1240, 1251, 1260]]


def test_rewards_are_told_of_the_sample_and_not_of_a_column_of_that_name() -> None:
    (first, *_) = score_inputs(PROMPTS, DRAWN)
    assert first.columns["completion"] == "10" and first.columns["tokens"] == (9,)


def test_advantages_are_of_each_group_alone_and_leave_out_unjudged_samples() -> None:
    # first: 0 and -2, mean -1, deviation sqrt(2), so +-1/sqrt(2); second: 0 -7 -2, mean -3, deviation sqrt((9 + 16 + 1) / 2) = sqrt(13)
    rewards = [[0.0, -2.0, None], [0.0, -7.0, -2.0]]
    groups = [
        Group(prompt, tuple(Sample(prompt.id, drawn, reward, {}) for drawn, reward in zip(DRAWN[i], rewards[i], strict=True)))
        for i, prompt in enumerate(PROMPTS)
    ]
    half, root = 1 / math.sqrt(2), math.sqrt(13)
    assert group_advantages(GRPO, groups, {}).ravel().tolist() == pytest.approx([half, -half, 0, 3 / root, -4 / root, 1 / root])
    centred = replace(GRPO, advantage=group_centre)
    assert group_advantages(centred, groups, {}).tolist() == [[1, -1, 0], [3, -4, 1]]


def group_of(*parts: Mapping[str, float | None], weights: Mapping[str, float]) -> Group:
    """A sample of each, its reward the weighted sum of its parts, None where it has none."""
    rewards = [sum(weights[name] * value for name, value in each.items()) if None not in each.values() else None for each in parts]
    return Group(PROMPTS[0], tuple(Sample("a", DRAWN[0][0], reward, each) for reward, each in zip(rewards, parts, strict=True)))


NOTHING = {"format": 0.0, "language": 0.0, "length": 0.0}


@pytest.mark.parametrize("algorithm", ["grpo", "dr_grpo", "dapo", "rloo", "reinforce_pp"])
@pytest.mark.parametrize(("scale", "parts"), [(1e-3, (0.2, 0.1, -0.3)), (1.0, (0.2, 0.1, -0.3)), (1e8, (0.4, 0.7, -1.1))])
def test_parts_that_cancel_are_no_signal(algorithm: str, scale: float, parts: tuple[float, float, float]) -> None:
    """0.2 + 0.1 - 0.3 is 5.6e-17. 1e8 (0.4 + 0.7 - 1.1) is 1.5e-8, and rounding too, at that scale; a thousandth of a part is a signal."""
    weights = dict.fromkeys(NOTHING, scale)
    cancelled = group_of(dict(zip(NOTHING, parts, strict=True)), NOTHING, NOTHING, NOTHING, weights=weights)
    assert cancelled.samples[0].reward != 0
    assert group_advantages(TABLE[algorithm], [cancelled], weights).tolist() == [[0.0] * 4]
    told = group_of(dict(zip(NOTHING, (parts[0], parts[1] + 0.001, parts[2]), strict=True)), NOTHING, NOTHING, NOTHING, weights=weights)
    assert np.abs(group_advantages(TABLE[algorithm], [told], weights)).min() > 1e-7


def test_parts_that_cancel_are_one_reward_to_an_advantage_that_tests_no_equality() -> None:
    """The ranks of examples/03_custom_variant.py compare with > and <."""
    ranks = load_algorithm("./03_custom_variant.py:RANKS", Path("examples").resolve())
    weights = dict.fromkeys(NOTHING, 1.0)
    cancelled = group_of({"format": 0.2, "language": 0.1, "length": -0.3}, NOTHING, NOTHING, weights=weights)
    assert group_advantages(ranks, [cancelled], weights).tolist() == [[0.0] * 3]


def test_advantages_of_single_rewards_that_cancel_are_no_signal() -> None:
    """z-scores of (0, 1, 5) and of minus these, weighted alike, sum to rounding, which the batch's deviation would make 1."""
    weights = {"right": 0.3, "short": 0.1}
    found = group_of(*({"right": x, "short": -3 * x + 0.1} for x in (0.1, 1.0, 5.7)), weights={"right": 0.3, "short": 0.3})
    assert group_advantages(TABLE["gdpo"], [found], {"right": 0.3, "short": 0.3}).tolist() == [[0.0] * 3]
    assert np.abs(group_advantages(TABLE["gdpo"], [found], weights)).max() == pytest.approx(1.1, abs=0.2)


@pytest.mark.parametrize("algorithm", ["grpo", "dr_grpo", "rloo", "reinforce_pp"])
def test_a_divergence_in_the_reward_is_taken_from_the_sum(algorithm: str) -> None:
    row = replace(TABLE[algorithm], kl_coef=0.1, kl_in="reward")
    group = group_of(*({"math": x} for x in (0.0, 1.0, 1.0, 0.0)), weights={"math": 1.0})
    taken = group_of(*({"math": x} for x in (0.0 - 0.5, 1.0, 1.0 - 0.1, 0.0 - 0.8)), weights={"math": 1.0})
    found = group_advantages(row, [group], {"math": 1.0}, np.array([[5.0, 0.0, 1.0, 8.0]]))
    assert found.ravel().tolist() == pytest.approx(group_advantages(row, [taken], {"math": 1.0}).ravel().tolist())


def test_where_each_reward_is_normalised_the_divergence_counts_by_its_coefficient() -> None:
    """Rewards 0 1 1 0: centred -+1/2, deviation sqrt(1/3), so z = -+0.87. Divergences 3 1 1 3 have just minus these z-scores, whatever their unit."""
    group = group_of(*({"math": x} for x in (0.0, 1.0, 1.0, 0.0)), weights={"math": 1.0})
    z = np.array([[-1.0, 1.0, 1.0, -1.0]]) * math.sqrt(3) / 2
    divergence = np.array([[3.0, 1.0, 1.0, 3.0]])
    for coefficient in (1e-6, 0.25, 1.0):
        row = replace(GRPO, per_reward=True, kl_in="reward", kl_coef=coefficient)
        assert group_advantages(row, [group], {"math": 1.0}, divergence) == pytest.approx((1 + coefficient) * z, rel=1e-12)
        row = replace(row, batch_normalise=True)
        assert group_advantages(row, [group], {"math": 1.0}, 100 * divergence) == pytest.approx(z, rel=1e-12)


@pytest.mark.parametrize(
    ("rewards", "signal"),
    [
        ((1.0, 0.0), True),
        ((1.0, 1.0), False),
        ((0.0, 0.0), False),
        ((None, None), False),
        ((1.0, None), False),
        ((1.0, None, 0.5), True),
        ((0.1 + 0.2, 0.3), False),
        ((1e-160, 0.0), False),
    ],
)
@pytest.mark.parametrize("algorithm", TABLE)
def test_a_group_has_signal_where_its_rewards_give_an_advantage(algorithm: str, rewards: tuple[float | None, ...], signal: bool) -> None:
    group = group_of(*({"math": reward} for reward in rewards), weights={"math": 1.0})
    assert has_signal(TABLE[algorithm], group, {"math": 1.0}) is signal


def test_a_group_whose_sums_are_equal_has_signal_where_each_reward_is_normalised() -> None:
    """1 x 1 + 0.5 x 0 = 1 x 0.5 + 0.5 x 1, but z-scores of two are -+1/sqrt(2), and weights 1 and 0.5 leave half of one."""
    weights = {"math": 1.0, "format": 0.5}
    group = group_of({"math": 1.0, "format": 0.0}, {"math": 0.5, "format": 1.0}, weights=weights)
    assert not has_signal(GRPO, group, weights) and has_signal(TABLE["gdpo"], group, weights)
    unnormalised = replace(TABLE["gdpo"], batch_normalise=False)
    half = 0.5 / math.sqrt(2)
    assert group_advantages(unnormalised, [group], weights).ravel().tolist() == pytest.approx([half, -half])


@pytest.mark.parametrize(
    ("row", "reward"), [(TABLE["dr_grpo"], math.inf), (replace(GRPO, name="mine", advantage=lambda rewards, _: rewards / 0.0), 1.0)]
)
def test_advantages_that_are_no_numbers_name_prompt_and_rewards(row: Algorithm, reward: float) -> None:
    group = group_of({"math": reward}, {"math": 0.0}, weights={"math": 1.0})
    with pytest.raises(
        TrainingError, match=f"algorithm '{row.name}' gave prompt 'a' the advantages .*, from the rewards {reward:g}, 0; keep"
    ):
        group_advantages(row, [group], {"math": 1.0})


def test_a_step_sums_counts_and_keeps_the_largest_of_maxima() -> None:
    updates = [
        {
            "rollout/importance_max": 1.5,
            "train/nonfinite_logprobs": 0.0,
            "train/skipped_updates": 1.0,
            "loss/kl": 0.1,
            "loss/total": math.nan,
        },
        {
            "rollout/importance_max": 60.0,
            "train/nonfinite_logprobs": 7.0,
            "train/skipped_updates": 1.0,
            "loss/kl": 0.3,
            "loss/total": math.nan,
        },
        {"train/skipped_updates": 1.0, "train/empty_updates": 1.0},
    ]
    assert over_updates(updates) == pytest.approx(
        {
            "rollout/importance_max": 60.0,
            "train/nonfinite_logprobs": 7.0,
            "train/skipped_updates": 3.0,
            "train/empty_updates": 1.0,
            "loss/kl": 0.2,
            "loss/total": math.nan,
        },
        nan_ok=True,
    )


def test_a_scheduled_weight_is_a_step_function_of_the_updates_made() -> None:
    use = RewardUse(use="judge", weight=[[2, 1.0], [5, 0.25]])
    assert [use.weight_at(update) for update in range(7)] == [0, 0, 1, 1, 1, 0.25, 0.25]
    assert RewardUse(use="judge", weight=0.5).weight_at(10**6) == 0.5


def test_a_schedule_at_zero_leaves_a_reward_out_and_a_plain_zero_watches() -> None:
    uses = [RewardUse(use="math"), RewardUse(use="format", weight=0.0), RewardUse(use="./mine.py:near", name="late", weight=[[3, 2.0]])]
    assert weights_at(uses, 2) == {"math": 1.0, "format": 0.0}
    assert weights_at(uses, 3) == {"math": 1.0, "format": 0.0, "late": 2.0}


def test_a_reward_that_is_left_out_is_not_run_and_drops_nobody(base: Path) -> None:
    """near abstains on "?", and required it would drop that sample; left out, it has no part and no say."""
    specs = [RewardSpec("./mine.py:near", required=True), RewardSpec("./mine.py:drawn")]
    with RewardRuntime(specs, base=base) as runtime:
        groups = score_groups(runtime, PROMPTS, DRAWN, {"drawn": 0.5})
        assert [dict(sample.parts) for sample in groups[0].samples] == [{"drawn": 110}, {"drawn": 120}, {"drawn": 130}]
        assert [sample.reward for sample in groups[0].samples] == [55, 60, 65]
        groups = score_groups(runtime, PROMPTS, DRAWN, {"near": 2.0})
        assert [sample.reward for sample in groups[0].samples] == [0, -4, None]
        assert groups[0].samples[2].notes == {"near": "abstained"}


def test_per_reward_advantages_count_the_rewards_in_force(base: Path) -> None:
    """Of (10, 12) against 10 only near is in force: 0 and -2 are 1/sqrt(2) deviations from their mean, times the weight 3."""
    specs = [RewardSpec("./mine.py:near"), RewardSpec("./mine.py:drawn")]
    weights = {"near": 3.0}
    with RewardRuntime(specs, base=base) as runtime:
        groups = score_groups(runtime, PROMPTS[:1], [DRAWN[0][:2]], weights)
    half = 3 / math.sqrt(2)
    assert group_advantages(replace(GRPO, per_reward=True), groups, weights).ravel().tolist() == pytest.approx([half, -half])


def test_the_watch_tells_rules_from_models_and_leaves_out_what_weighs_nothing(tmp_path: Path) -> None:
    (tmp_path / "judges.py").write_text(
        "from rewards import reward\n\n@reward(by_model=True)\ndef judge(completion):\n    return 1.0\n\ndef free(completion):\n    return 1.0\n"
    )
    uses = [
        RewardUse(use="./judges.py:judge", weight=[[100, 1.0]]),  # from the hundredth update on
        RewardUse(use="format"),
        RewardUse(use="math"),
        RewardUse(use="./judges.py:free", weight=0.0),
    ]
    with RewardRuntime([RewardSpec(use.use, weight=use.weight_at(0)) for use in uses], base=tmp_path) as rewards:
        watch = watch_over(rewards, uses)
    assert (watch.rules, watch.models, watch.accuracy) == (["format", "math"], ["judge"], "math")


def test_a_step_logs_latency_failures_and_repetition(base: Path) -> None:
    """Of six samples one abstains; one repeats "a b c d" once: of its five 4-grams one is a repetition, and 1/5 shared by six is 1/30."""
    drawn = [DRAWN[0], [*DRAWN[1][:2], completion("21")]]
    specs = [RewardSpec("./mine.py:near", required=True), RewardSpec("format")]
    with RewardRuntime(specs, base=base) as runtime:
        groups = score_groups(runtime, PROMPTS, drawn)
        failures, latency = reward_failures(runtime), reward_latency(runtime)
        assert reward_latency(runtime) == {}
    assert failures == {"reward/near_abstained": 1.0}
    assert latency.keys() == {"reward/near_s", "reward/near_p95_s", "reward/format_s", "reward/format_p95_s"}
    assert 0 < latency["reward/near_s"] <= latency["reward/near_p95_s"] < 1
    looping = replace(groups[0].samples[0], completion=completion("a b c d a b c d"))
    groups[0] = replace(groups[0], samples=(looping, *groups[0].samples[1:]))
    metrics = group_metrics(groups, np.zeros((2, 3)), Tags())
    assert metrics["rollout/repeated_4gram_frac"] == pytest.approx(1 / 30)
    assert metrics["rollout/well_formed_frac"] == 0.0
    assert "rollout/well_formed_frac" not in group_metrics(groups, np.zeros((2, 3)), None)


@pytest.mark.parametrize(
    ("recipe", "changes", "asks"),
    [
        ("r1_zero_tiny", [], True),
        ("r1_zero_tiny", ["evaluation.well_formed=null"], True),
        ("r1_zero_tiny", ["stages.reason.rewards=[{use: math}]"], True),
        ("r1_zero_smollm2", [], False),
    ],
)
def test_form_is_counted_only_where_a_reward_or_an_evaluation_looks_for_it(recipe: str, changes: list[str], asks: bool) -> None:
    loaded = load_recipe(recipe, changes, check_inputs=False).recipe
    assert asks_for_form(cast(RlStage, loaded.stages[0]), loaded) is asks


def test_alarms_are_written_as_one_object_a_line(tmp_path: Path) -> None:
    watch = Watch(("math",), (), "math")
    with JsonLines(tmp_path / "alarms.jsonl") as file:
        for step in range(1, 31):
            for alarm in watch.step(step, {"loss/kl": 0.05 if step < 29 else 1.0}):
                file.write(vars(alarm))
    (row,) = [json.loads(line) for line in (tmp_path / "alarms.jsonl").read_text().splitlines()]
    assert row["step"] == 30 and row["alarm"] == "kl_jumps" and row["evidence"] == {"loss/kl": [0.05, 1.0], "steps": 20}
