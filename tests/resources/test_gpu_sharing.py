"""Engines and trainer on one GPU: before one of them works the other has given its memory back, whichever is asked for first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from grpo.algorithm import GRPO
from grpo.config import OptimizerKeys, Recipe
from grpo.errors import TrainingError
from grpo.resources.context import Workplace
from grpo.resources.gpu_sharing import Turns
from grpo.trainer.policy_trainer import PolicyTrainer, TrainerSpec
from grpo.trainer.remote import RemoteTrainer
from grpo.types import Checkpoint
from rollout.engines.base import EngineSettings
from rollout.errors import EngineError
from rollout.pool import PoolSettings, RolloutPool
from rollout.types import Prompt, SamplingParams
from rollout.worker import RolloutWorker
from tests.stages.conftest import Heard
from tests.trainer.test_ranks import batch_with

PROMPTS = [Prompt("p", (5, 6, 7))]
Shared = tuple[RolloutPool, RemoteTrainer, list[str]]


@pytest.fixture
def shared(local_ray: None, tiny_qwen2: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shared]:
    """Real engines and a real trainer that take turns, and who went to sleep or woke, in order."""
    done: list[str] = []
    for owner, name in ((RolloutPool, "engines"), (RemoteTrainer, "trainer")):
        for method in ("sleep", "wake"):
            _note(monkeypatch, owner, method, done, name)
    turns = Turns()
    pool = turns.pool = RolloutPool(
        "hf", EngineSettings(dtype="float32", max_tokens=64, num_threads=1), PoolSettings(backoff_s=0.05), turn=turns.engines
    )
    turns.trainers()
    trainer = turns.trainer = RemoteTrainer(TrainerSpec(tiny_qwen2, OptimizerKeys(), 4, GRPO, num_threads=1), turn=turns.trainers)
    pool.load_model(tiny_qwen2, version=0)
    yield pool, trainer, done
    trainer.close()
    pool.close()


def _note(monkeypatch: pytest.MonkeyPatch, owner: Any, method: str, done: list[str], name: str) -> None:
    plain = getattr(owner, method)

    def noted(self: Any) -> None:
        before = self.is_asleep
        plain(self)
        if self.is_asleep != before:
            done.append(f"{name} {method}")

    monkeypatch.setattr(owner, method, noted)


def draw(pool: RolloutPool) -> None:
    pool.sample(PROMPTS, 2, SamplingParams(4), seed=1, step=0, deadline_s=30, progress=lambda *_: None)


def test_whoever_works_is_awake_and_the_other_asleep(shared: Shared) -> None:
    pool, trainer, done = shared
    assert done == ["trainer sleep"]  # when the engines loaded their model
    draw(pool)
    trainer.policy_update(batch_with(2))
    trainer.policy_update(batch_with(2))
    assert done[1:] == ["engines sleep", "trainer wake"]
    pool.sync(lambda: trainer.export(1, "float32"), 1)
    draw(pool)
    assert done[3:] == ["trainer sleep", "engines wake"] and pool.version == 1


def test_a_checkpoint_is_written_while_engines_draw(shared: Shared, tmp_path: Path) -> None:
    pool, trainer, done = shared
    trainer.policy_update(batch_with(2))
    draw(pool)
    asleep = list(done)
    wait = trainer.begin("save_state", tmp_path)
    draw(pool)
    assert wait()["num_updates"] == 1 and trainer.memory_bytes()["trainer"] > 0
    assert list(tmp_path.glob("*.safetensors")) and done == asleep


def test_a_worker_that_dies_asleep_is_replaced_by_one_that_holds_the_same_weights(shared: Shared) -> None:
    pool, trainer, done = shared
    trainer.policy_update(batch_with(2))
    pool.sync(lambda: trainer.export(1, "float32"), 1)
    trainer.policy_update(batch_with(2))
    ray.kill(pool.supervisor.slots[0].actor)
    draw(pool)
    assert pool.num_lost == 1 and pool.version == 1


def test_one_that_dies_when_it_is_to_sleep_is_replaced_by_one_that_sleeps(shared: Shared) -> None:
    pool, trainer, _ = shared
    draw(pool)
    ray.kill(pool.supervisor.slots[0].actor)
    trainer.policy_update(batch_with(2))
    assert pool.num_lost == 1 and pool.is_asleep
    with pytest.raises(ray.exceptions.RayTaskError, match="the engine is asleep"):
        ray.get(pool.supervisor.slots[0].actor.submit.remote([]))


def test_a_trainer_whose_stage_is_over_has_left_the_gpu_before_its_process_ends(local_ray: None, tiny_qwen2: Path, tmp_path: Path) -> None:
    """A process that is told to end may hold its memory for a while, and the engine that wakes next finds none."""
    stage = {"name": "reason", "kind": "rl", "prompts": "rows", "rewards": [{"use": "math"}], "steps": 1}
    recipe = Recipe.model_validate({"name": "r", "model": "m", "rollout": {"sleep": True}, "stages": [stage]})
    work = Workplace(recipe, tmp_path, tmp_path, {}, Heard())
    with work.trainer(TrainerSpec(tiny_qwen2, OptimizerKeys(), 4, GRPO, num_threads=1)) as trainer:
        assert trainer.policy_update(batch_with(2))["train/grad_norm"] > 0 and not trainer.is_asleep
    assert trainer.is_asleep


@pytest.mark.parametrize("sleep", [True, False])
def test_a_recipe_that_says_sleep_makes_engines_and_trainer_take_turns(
    local_ray: None, tiny_qwen2: Path, tmp_path: Path, sleep: bool
) -> None:
    stage = {"name": "reason", "kind": "rl", "prompts": "rows", "rewards": [{"use": "math"}], "steps": 1, "max_prompt_tokens": 32}
    rollout = {"engine": "hf", "dtype": "float32", "sleep": sleep}
    recipe = Recipe.model_validate({"name": "r", "model": "m", "rollout": rollout, "stages": [stage]})
    work = Workplace(recipe, tmp_path, tmp_path, {}, Heard())
    spec = TrainerSpec(tiny_qwen2, OptimizerKeys(), 4, GRPO, num_threads=1)
    pool = work.pool(Checkpoint(tiny_qwen2))
    with work.trainer(spec) as trainer:
        assert (pool.is_asleep, trainer.is_asleep) == (sleep, False)  # it is made awake
        draw(pool)
        assert (pool.is_asleep, trainer.is_asleep) == (False, sleep)
        trainer.policy_update(batch_with(2))
        assert (pool.is_asleep, trainer.is_asleep) == (sleep, False)
    pool.close()


def test_nothing_works_while_it_is_asleep(tiny_qwen2: Path) -> None:
    worker = RolloutWorker("hf", EngineSettings(dtype="float32", max_tokens=64, num_threads=1))
    worker.load_model(tiny_qwen2, version=0)
    worker.sleep()
    for work in (lambda: worker.submit([]), lambda: worker.prove_reload([(5, 6)]), lambda: worker.sync(None, "in_place")):  # type: ignore[arg-type]
        with pytest.raises(EngineError, match="the engine is asleep"):
            work()
    trainer = PolicyTrainer(TrainerSpec(tiny_qwen2, OptimizerKeys(), 4, GRPO))
    trainer.sleep()
    for work in (lambda: trainer.policy_update(batch_with(2)), lambda: trainer.export_weights(1)):
        with pytest.raises(TrainingError, match="the trainer is asleep: engines have its GPU"):
            work()
    trainer.wake()
    assert trainer.policy_update(batch_with(2))["train/grad_norm"] > 0
