"""The trainer of one stage at a time, in its own processes, on its part of the machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from grpo.resources.context import RunContext
from grpo.resources.engines import cluster_machine
from grpo.resources.gpu_sharing import GpuSharing
from grpo.trainer.client import TrainerClient
from grpo.trainer.policy_trainer import TrainerSpec
from grpo.trainer.remote import RemoteTrainer


class Trainers:
    """Makes trainers. The GPU arithmetic is Machine's."""

    def __init__(self, context: RunContext, sharing: GpuSharing):
        self.context, self._sharing = context, sharing

    @contextmanager
    def trainer(self, spec: TrainerSpec) -> Iterator[TrainerClient]:
        """A trainer, whose processes end with the context."""
        recipe, machine = self.context.recipe, cluster_machine()
        is_colocated = machine.is_colocated(recipe)
        turn = self._sharing.trainers if is_colocated else lambda: None
        turn()  # a trainer is made awake
        trainer = self._sharing.trainer = RemoteTrainer(spec, machine.checked_gpu_share(recipe), recipe.rollout.transport, turn)
        try:
            yield trainer
            if is_colocated:
                trainer.sleep()  # a process that is told to end may hold its GPU for a while yet
        finally:
            self._sharing.trainer = None
            trainer.close()
