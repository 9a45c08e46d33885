"""Which prompts an rl step uses, and what it writes down of them: the real loop, orders and rewards around scripted samples and no trainer."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from grpo.algorithm import load_algorithm
from grpo.config import Recipe
from grpo.resources.context import Workplace
from grpo.stages.rl import RlLoop, gap_bound
from grpo.types import Checkpoint
from rewards import RewardRuntime, RewardSpec
from rollout.types import Completion, Prompt
from tests.stages.conftest import Heard

REWARD = """
def letters(completion: str, data_source: str) -> float:
    return 1.0 if data_source == "dull" else float(len(completion))
"""


class ScriptedPool:
    """The j-th sample of a prompt is j + 1 letters long."""

    version = 0
    mode = "in_place"
    num_lost = 0
    memory_bytes = 3 * 2**30

    def sample(self, prompts: Sequence[Prompt], num_samples: int, *_: Any, **__: Any) -> list[list[Completion]]:
        return [
            [Completion.of((5,) * n, (-1.0,) * n, (True,) * n, "x" * n, "stop", ((0, self.version),)) for n in range(1, num_samples + 1)]
            for _ in prompts
        ]

    def sync(self, *_: Any) -> list[Any]:
        self.version += 1
        return []


class NoTrainer:
    def policy_update(self, batch: Any, _: float) -> dict[str, float]:
        return {"train/skipped_updates": 0.0, "train/rows": float(len(batch))}

    def memory_bytes(self) -> dict[str, int]:
        return {"trainer": 2**30, "trainer_gpu": 2**31}


@pytest.fixture
def loop(tmp_path: Path, tiny_qwen2: Path) -> Iterator[Any]:
    """A loop over 16 dull prompts, whose samples are all worth the same, and 16 lively ones."""
    (tmp_path / "letters.py").write_text(REWARD)
    for name in ("dull", "lively"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"prompt": f"{name} {i}"}) + "\n" for i in range(16)))
    runtime = RewardRuntime([RewardSpec("./letters.py:letters", None, 1.0, {}, None)], deadline_s=20, base=tmp_path)

    def make(**keys: Any) -> RlLoop:
        stage = {"name": "s", "kind": "rl", "steps": 3, "prompts_per_step": 4, "samples_per_prompt": 2, "prompts": ["dull", "lively"]}
        recipe = Recipe.model_validate(
            {
                "name": "r",
                "model": {"path": str(tiny_qwen2)},
                "template": "plain",
                "data": {"dull": {"jsonl": "dull.jsonl"}, "lively": {"jsonl": "lively.jsonl"}},
                "stages": [{**stage, "rewards": [{"use": "./letters.py:letters"}], **keys}],
            }
        )
        work = Workplace(recipe, tmp_path, tmp_path / "run", {}, Heard())
        prompts = work.prompts(recipe.stages[0].prompts, work.tokenizer(tiny_qwen2), 64, is_endless=True).prompts
        made = RlLoop(
            recipe.stages[0],
            work,
            tmp_path,
            load_algorithm("grpo", tmp_path),
            Checkpoint(tiny_qwen2),
            NoTrainer(),
            ScriptedPool(),
            runtime,
            prompts,
        )
        return made

    with runtime:
        yield make


def test_dull_groups_are_replaced_and_every_prompt_drawn_is_written_down_once(loop: Any) -> None:
    dynamic = loop(dynamic_sampling={"max_rounds": 5})
    written, positions = [], []
    with dynamic.drawing():
        for step in range(3):
            metrics, rows = dynamic.step(step)
            assert [metrics[f"memory/{of}_gib"] for of in ("trainer", "trainer_gpu", "engine")] == [1, 2, 3]
            written += rows
            positions.append(metrics["data/prompts_consumed"])
            if step == 0:
                after_first = json.loads(json.dumps(dynamic.state(step, metrics)))
            used = [row for row in rows if not row.get("replaced")]
            assert {row["prompt"].split()[0] for row in used} == {"lively"} and len(used) == 4 * 2
            assert metrics["rollout/groups_unfilled"] == 0
            assert metrics["rollout/groups_replaced"] == len({row["prompt_id"] for row in rows}) - 4
    assert all(row["prompt"].startswith("dull") and row["advantage"] == 0 for row in written if row.get("replaced"))
    counted = Counter(row["prompt_id"] for row in written)
    assert len(counted) == positions[-1] == dynamic.position <= 32 and set(counted.values()) == {2}

    resumed = loop(dynamic_sampling={"max_rounds": 5})
    resumed.go_on(1, after_first["loop"])
    with resumed.drawing(1):
        assert [row["prompt_id"] for row in resumed.step(1)[1]] == [row["prompt_id"] for row in written if row["step"] == 2]


def test_a_resumed_run_has_at_least_the_bound_that_a_new_one_has(loop: Any) -> None:
    resumed = loop(prompts="lively")
    kept = {"num_updates": 0, "position": 0, "sync": "in_place"}
    for of_the_checkpoint, now in ((0.0315, 0.05), (0.12, 0.12), (None, float("inf"))):
        resumed.go_on(1, {**kept, "max_logprob_gap": of_the_checkpoint})
        assert resumed.max_logprob_gap == now


def test_data_that_are_all_too_easy_go_on_with_a_warning_said_once(loop: Any) -> None:
    dull = loop(prompts="dull", dynamic_sampling={"max_rounds": 1})
    with dull.drawing():
        for step in range(2):
            metrics, rows = dull.step(step)
            assert (metrics["rollout/groups_unfilled"], metrics["rollout/rounds"], len(rows)) == (4, 2, 8 * 2)
            assert metrics["reward/zero_variance_groups_frac"] == 1
    (warning,) = [line for line in dull.work.progress.lines if "teach nothing" in line]
    assert warning.startswith("  step 1: 4 of 4 groups teach nothing after 1 extra rounds, because their rewards are equal")
    assert "at 1.00 on average" in warning


def test_without_dynamic_sampling_a_step_is_the_next_prompts_of_the_order(loop: Any) -> None:
    plain = loop()
    with plain.drawing():
        ids = [row["prompt_id"] for step in range(3) for row in plain.step(step)[1]]
    assert plain.position == 12 and len(set(ids)) == 12
    assert ids[::2] == [prompt.id for prompt in plain.prompts_at(0, 12)]


def test_a_mixture_keeps_its_shares_in_every_step_and_tells_rewards_by_source(loop: Any) -> None:
    mixed = loop(prompts=[{"use": "dull", "weight": 3}, {"use": "lively", "weight": 1}])
    with mixed.drawing():
        for step in range(3):
            metrics, _ = mixed.step(step)
            assert (metrics["by_source/dull_groups"], metrics["by_source/lively_groups"]) == (3, 1)
            assert (metrics["by_source/dull_reward"], metrics["by_source/lively_reward"]) == (1.0, 1.5)


def test_the_bound_on_the_gap_leaves_room_for_what_rounding_makes_in_single_steps() -> None:
    """SmolLM2 after 240 steps of RL: 0.0105 before the first update of the next run, up to 0.0361 in single steps of a healthy one."""
    assert gap_bound(0.0105, "bfloat16", "bfloat16") == gap_bound(0.0105, "float32", "bfloat16") == 0.05
    assert gap_bound(0.04, "bfloat16", "bfloat16") == pytest.approx(0.12)
    assert gap_bound(1e-6, "float32", "float32") == 0.01


def test_a_gap_on_its_way_to_the_bound_is_said_once_and_odd_log_probabilities_are_counted(
    loop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gaps = iter([0.04, 0.051, 0.09])
    monkeypatch.setattr(NoTrainer, "policy_update", lambda *_: {"train/skipped_updates": 0.0, "rollout/logprob_gap": next(gaps)})

    def sample(pool: ScriptedPool, prompts: Sequence[Prompt], num_samples: int, *_: Any, **__: Any) -> list[list[Completion]]:
        odd = Completion.of((5, 6, 7), (-1.0, float("nan"), float("-inf")), (True,) * 3, "xxx", "stop", ((0, pool.version),))
        return [[odd] * num_samples for _ in prompts]

    monkeypatch.setattr(ScriptedPool, "sample", sample)
    drifting = loop(prompts="lively")
    drifting.max_logprob_gap = 0.1
    with drifting.drawing():
        counted = [drifting.step(step)[0]["rollout/nonfinite_logprobs"] for step in range(3)]
    assert counted == [4 * 2 * 2] * 3
    (warning,) = [line for line in drifting.work.progress.lines if "drift apart" in line]
    assert warning.startswith(
        "  update 2: engine and trainer drift apart: mean |log-prob difference| 0.0510 a token; the run stops above 0.1000"
    )
