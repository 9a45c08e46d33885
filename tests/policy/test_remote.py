"""The trainer in an actor of its own: whose fault it is when it dies."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from grpo.algorithm import GRPO
from grpo.config import Optimiser
from grpo.errors import TrainingError
from grpo.policy.remote import RemoteTrainer
from grpo.policy.trainer import TrainerSpec


def test_a_dead_trainer_is_named_where_its_weights_are_asked_for(local_ray: None, tiny_qwen2: Path) -> None:
    trainer = RemoteTrainer(TrainerSpec(tiny_qwen2, Optimiser(), 1, GRPO, num_threads=1))
    try:
        assert ray.get(trainer.export(1, "float32")).version == 1
        ray.kill(trainer._actors[0])
        with pytest.raises(TrainingError, match="the trainer's process died.*It holds .*the run resumes"):
            trainer.export(2, "float32")
    finally:
        trainer.close()
