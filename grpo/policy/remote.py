"""The trainer as the driver sees it: PolicyTrainer in a Ray actor, with errors that say what they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray

from grpo.errors import TrainingError
from grpo.policy.trainer import PolicyTrainer, TrainerSpec


class _TrainerActor:
    """Makes its trainer in a call rather than on creation: what goes wrong there is then an error with a cause, not a dead actor."""

    def make(self, spec: TrainerSpec) -> None:
        self._trainer = PolicyTrainer(spec)

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._trainer, method)(*args, **kwargs)


class RemoteTrainer:
    """Calls PolicyTrainer's methods in its own process: ``remote.policy_update(batch)`` waits for the result."""

    def __init__(self, spec: TrainerSpec):
        num_gpus = ray.cluster_resources().get("GPU", 0)
        options: dict[str, Any] = {"num_cpus": 0, "num_gpus": min(1.0, num_gpus / 2), "max_restarts": 0}
        if spec.num_threads:
            options["runtime_env"] = {"env_vars": {"OMP_NUM_THREADS": str(spec.num_threads), "TOKENIZERS_PARALLELISM": "false"}}
        self._actor = ray.remote(_TrainerActor).options(**options).remote()
        self._wait(self._actor.make.remote(spec))

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: self._wait(self._actor.call.remote(method, *args, **kwargs))

    def export(self, version: int, dtype: str) -> Any:
        """A reference to the exported weights: they go from trainer to workers through shared memory, never through the driver."""
        return self._actor.call.remote("export_weights", version, dtype)

    def close(self) -> None:
        ray.kill(self._actor)

    def _wait(self, reference: Any) -> Any:
        try:
            return ray.get(reference)
        except ray.exceptions.RayActorError as error:
            raise TrainingError(
                f"the trainer's process died (out of memory is the commonest cause; lower tokens_per_device): {error}"
            ) from error
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, TrainingError):
                raise TrainingError(str(error.cause)) from None
            raise
