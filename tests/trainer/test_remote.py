"""The trainer in an actor of its own: whose fault it is when it dies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import ray

from grpo.algorithm import GRPO
from grpo.config import OptimizerKeys
from grpo.errors import TrainingError
from grpo.trainer.policy_trainer import TrainerSpec
from grpo.trainer.remote import KEEP_FREED_MEMORY, RemoteTrainer, _options


@pytest.fixture
def make_trainer(local_ray: None, tiny_qwen2: Path) -> Iterator[Callable[..., RemoteTrainer]]:
    made: list[RemoteTrainer] = []

    def make(**transport: Any) -> RemoteTrainer:
        made.append(RemoteTrainer(TrainerSpec(tiny_qwen2, OptimizerKeys(), 1, GRPO, num_threads=1), **transport))
        return made[-1]

    yield make
    for trainer in made:
        trainer.close()


def test_what_goes_wrong_with_an_export_is_the_trainers_and_not_its_readers(make_trainer: Callable[..., RemoteTrainer]) -> None:
    trainer = make_trainer()
    with pytest.raises(AttributeError, match="float17"):
        trainer.export(1, "float17")
    assert ray.get(trainer.export(1, "float32")).version == 1
    ray.kill(trainer._actors[0])
    with pytest.raises(TrainingError, match="the trainer's process died.*It holds .*the run resumes"):
        trainer.export(2, "float32")


def test_a_trainer_that_ray_ended_for_memory_is_told_like_one_that_the_kernel_ended(
    make_trainer: Callable[..., RemoteTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer()

    def get(*_: Any, **__: Any) -> None:
        raise ray.exceptions.OutOfMemoryError("1 worker(s) were killed due to the node running low on memory.\nand forty lines more")

    monkeypatch.setattr("grpo.trainer.remote.ray.get", get)
    with pytest.raises(TrainingError, match="most likely of too little memory.*the run resumes; Ray says: 1 worker.* low on memory.$"):
        trainer.memory_bytes()


def test_only_a_trainer_on_a_cpu_keeps_the_memory_that_it_has_freed(tiny_qwen2: Path) -> None:
    """On a GPU it reads its model into main memory and has no more use for it, where a sleeping engine's weights may be waiting."""
    spec = TrainerSpec(tiny_qwen2, OptimizerKeys(), 1, GRPO)
    on_cpu, on_gpu = (_options(spec, None, 0, share, "host")["runtime_env"]["env_vars"] for share in (0.0, 0.5))
    assert on_cpu.keys() >= KEEP_FREED_MEMORY.keys() and not on_gpu.keys() & KEEP_FREED_MEMORY.keys()


@pytest.mark.skipif(find_spec("nixl") is not None, reason="nixl is here, so it works")
def test_a_transport_that_does_not_work_is_named(make_trainer: Callable[..., RemoteTrainer]) -> None:
    with pytest.raises(TrainingError, match="rollout.transport: nixl does not work here"):
        make_trainer(transport="nixl").export(1, "float32")
