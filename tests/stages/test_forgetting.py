"""Supervised training against forgetting, on real trainers in this process: phases, validation, the way back to the best model, replay, ewc."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from grpo.config import Recipe
from grpo.evaluation.validation import hold_back
from grpo.resources.context import Workplace
from grpo.run.progress import Progress
from grpo.stages.supervised import earlier_rows, fine_tune
from grpo.trainer.policy_trainer import PolicyTrainer, TrainerSpec
from grpo.types import Checkpoint

CURRICULUM = {
    "by": "length",
    "easy": "low",
    "phases": [
        {"updates": 2, "mix": {"easy": 1}, "learning_rate_frac": 0.1, "batch_size": 2},
        {"updates": 3, "mix": {"easy": 0.3, "medium": 0.5, "hard": 0.2}},
        {"updates": 3, "weight_decay": 0.1},
    ],
}
TOO_FAST = {"learning_rate": 0.2, "validation": {"every": 2, "rows": 4, "tolerance": 0.0}, "checkpoint_every": 1, "epochs": 4}


class Killed(Exception):
    pass


class Near:
    """A PolicyTrainer as RemoteTrainer shows it, in this process. ``killed_at``: dies instead of that update."""

    def __init__(self, spec: TrainerSpec, killed_at: int | None):
        self.trainer, self.killed_at, self.seen = PolicyTrainer(spec), killed_at, []

    def supervised_update(self, batch: Any, *pace: Any) -> dict[str, float]:
        if self.trainer.num_updates + 1 == self.killed_at:
            raise Killed
        self.seen.append((batch, *pace))
        return self.trainer.supervised_update(batch, *pace)

    def begin(self, method: str, *arguments: Any) -> Callable[[], Any]:
        result = getattr(self.trainer, method)(*arguments)
        return lambda: result

    def __getattr__(self, name: str) -> Any:
        return getattr(self.trainer, name)


class NearWorkplace(Workplace):
    killed_at: int | None = None

    @contextmanager
    def trainer(self, spec: TrainerSpec) -> Iterator[Any]:
        self.near = Near(spec, self.killed_at)
        yield self.near


@pytest.fixture
def train(tmp_path: Path, tiny_qwen2: Path) -> Any:
    """Trains the last of these stages on 12 rows and returns its workplace; train(name, *stages, killed_at=5)."""
    rows = [{"prompt": f"{i}+1=", "completion": "x" * (i + 1), "length": i} for i in range(12)]
    others = [{"prompt": f"say {letter}:", "completion": letter} for letter in "abcdef"]
    for name, written in (("sums", rows), ("words", others)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))

    def train(name: str, *stages: dict[str, Any], killed_at: int | None = None) -> tuple[NearWorkplace, Path]:
        described = [
            {"name": f"s{i}", "kind": "sft", "data": "sums", "batch_size": 4, "learning_rate": 1e-3, **stage}
            for i, stage in enumerate(stages)
        ]
        data = {name: {"jsonl": f"{name}.jsonl"} for name in ("sums", "words")}
        keys = {"name": "r", "model": {"path": str(tiny_qwen2)}, "template": "plain", "data": data, "stages": described}
        recipe = Recipe.model_validate(keys)
        work = NearWorkplace(recipe, tmp_path, tmp_path / "run", {"base": Checkpoint(tiny_qwen2)}, Progress(1))
        work.num_threads, work.killed_at = 1, killed_at
        stage: Any = recipe.stages[-1]
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        try:
            fine_tune(work.rows(stage.data), Checkpoint(tiny_qwen2), stage, 0, work, folder, earlier_rows(stage, work))
        except Killed:
            assert killed_at is not None
        return work, folder

    return train


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_phases_have_rows_rates_and_sizes_of_their_own(train: Any) -> None:
    work, folder = train("phased", {"curriculum": CURRICULUM, "learning_rate": 1e-3})
    batches, rates, decays = zip(*work.near.seen, strict=True)
    assert [len(batch) for batch in batches] == [2, 2, 4, 4, 4, 4, 4, 4]
    assert rates == (0.1, 0.1, 1, 1, 1, 1, 1, 1) and decays == (None,) * 5 + (0.1,) * 3
    lengths = [
        sorted((batch.lengths - batch.prompt_lengths - 2).tolist()) for batch in batches
    ]  # a row's number: its length - 1, less the end
    assert sorted(lengths[0] + lengths[1]) == [0, 1, 2, 3]  # the easiest third, each once
    thirds = [number // 4 for batch in lengths[2:5] for number in batch]
    assert [thirds.count(third) for third in range(3)] == [4, 6, 2]  # 30%, 50%, 20% of 12, to within one row
    assert sorted(number for batch in lengths[5:] for number in batch) == list(range(12))  # then every row once
    assert [row["data/phase"] for row in metrics_of(folder)] == [1, 1, 2, 2, 2, 3, 3, 3]
    assert [row["train/learning_rate"] for row in metrics_of(folder)] == pytest.approx([1e-4] * 2 + [1e-3] * 6)


def test_a_drop_leads_back_to_the_best_model_and_lowers_the_learning_rate(train: Any) -> None:
    work, folder = train("fast", TOO_FAST)
    rows = metrics_of(folder)
    looks = {row["step"]: row["validation/loss"] for row in rows if "validation/loss" in row}
    rollbacks = {row["step"]: row["validation/rollbacks"] for row in rows if "validation/rollbacks" in row}
    assert list(looks) == [2, 4, 6, 8]
    best, expected, standing = float("inf"), 0, {}
    for step, loss in looks.items():
        expected += loss > best
        best = min(best, loss)
        standing[step] = expected
    assert rollbacks == standing and expected >= 1
    rates = [row["train/learning_rate"] for row in rows]
    assert rates == [0.2 * 0.5 ** max([count for step, count in standing.items() if step < row["step"]], default=0) for row in rows]


def test_the_stage_ends_with_the_best_model_it_saw(train: Any, tmp_path: Path) -> None:
    work, folder = train("fast", TOO_FAST)
    looks = {row["step"]: row["validation/loss"] for row in metrics_of(folder) if "validation/loss" in row}
    best = min(looks, key=lambda step: looks[step])
    assert best < 8, "the last update was to make it worse"
    kept = load_file(folder / "checkpoints" / f"step-{best:06d}" / "trainer-0.safetensors")
    model = load_file(folder / "model" / "model.safetensors")
    for name, tensor in model.items():
        assert tensor.equal(kept[f"policy/{name}"].bfloat16())


@pytest.mark.parametrize(
    "stages",
    [
        [TOO_FAST],
        [{"data": "words"}, {"replay": 0.2, "ewc": {"coef": 10.0, "rows": 4}, "epochs": 3, "checkpoint_every": 2}],
        pytest.param(
            [{**TOO_FAST, "curriculum": CURRICULUM, "epochs": 1, "checkpoint_every": 3}],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["rollback", "replay-and-ewc", "phases"],
)
def test_killed_twice_and_resumed_is_the_same_to_the_bit(train: Any, stages: list[dict[str, Any]]) -> None:
    _, whole = train("undisturbed", *stages)
    for killed_at in (5, 8):
        train("killed", *stages, killed_at=killed_at)
    _, resumed = train("killed", *stages)
    assert metrics_of(resumed) == metrics_of(whole)
    assert (resumed / "model" / "model.safetensors").read_bytes() == (whole / "model" / "model.safetensors").read_bytes()
    if "validation" in stages[-1]:
        assert metrics_of(whole)[-1]["validation/rollbacks"] >= 2


def test_replayed_rows_are_their_share_beside_the_stage_s_own(train: Any) -> None:
    work, folder = train("replayed", {"data": "words"}, {"replay": 0.2, "epochs": 4})
    plain, _ = train("plain", {"epochs": 4})
    assert [row["data/replayed_rows"] for row in metrics_of(folder)] == [1] * 12  # 12 of 60
    prompts = [tuple(batch.tokens[-1, : batch.prompt_lengths[-1]]) for batch, *_ in work.near.seen]
    assert [prompts.count(prompt) for prompt in set(prompts)] == [2] * 6  # two epochs of the six earlier rows
    for (with_replay, *_), (without, *_) in zip(work.near.seen, plain.near.seen, strict=True):
        assert with_replay.lengths[:4].tolist() == without.lengths.tolist()


def test_ewc_keeps_the_weights_nearer_to_where_they_were(train: Any, tiny_qwen2: Path) -> None:
    start = load_file(tiny_qwen2 / "model.safetensors")
    away = []
    for coef in (1e-9, 1e3):
        _, folder = train(f"coef-{coef}", {"data": "words"}, {"ewc": {"coef": coef, "rows": 6}, "epochs": 4})
        assert metrics_of(folder)[0]["loss/ewc"] == 0.0  # nothing has moved yet
        away.append(
            sum((t.float() - start[n].float()).square().sum().item() for n, t in load_file(folder / "model/model.safetensors").items())
        )
    assert away[1] < 0.9 * away[0]


def test_rows_of_one_prompt_are_held_back_together() -> None:
    prompts = [(1,), (2,), (1,), (3,), (2,), (4,)]
    for seed in range(20):
        chosen = hold_back(prompts, 2, seed)
        assert 2 <= len(chosen) <= 3
        assert {prompts[i] for i in chosen}.isdisjoint(prompts[i] for i in range(6) if i not in chosen)
