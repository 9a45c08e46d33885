"""The trainer as the driver sees it: one PolicyTrainer a rank, each in a Ray actor, called as one, with errors that say what they are."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psutil
import ray
import torch
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from grpo.errors import ToolkitError, TrainingError
from grpo.trainer.memory_budget import footprint
from grpo.trainer.policy_trainer import PolicyTrainer, TrainerSpec
from grpo.trainer.ranks import RankPlace
from rollout.faults import VARIABLES
from rollout.signals import keep_blocked
from rollout.weight_sync.weights import Transport

START_DEADLINE_S = 120.0
IN_ANY_PLACE = ("save_state", "memory_bytes")  # need no GPU: they may be called while the trainer is asleep


# The next pass needs what the last one freed. By default glibc gives large blocks back at once, and the kernel clears every page again: a
# quarter of an update of SmolLM2 on two cores. Huge pages make those faults that remain cheap. Other allocators ignore these variables. A trainer on
# a GPU needs main memory only to read its model, and gives that back.
KEEP_FREED_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(2**28),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


class _TrainerActor:
    """Makes its trainer in a call rather than on creation: what goes wrong there is then an error with a cause, not a dead actor."""

    def meeting(self) -> str:
        """A free port of this machine, on its address within the cluster."""
        host = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((host, 0))
            return f"tcp://{host}:{probe.getsockname()[1]}"

    def make(self, spec: TrainerSpec, place: RankPlace) -> None:
        keep_blocked()
        self._trainer, self._is_first = PolicyTrainer(spec, place), place.rank == 0

    def export(self, *args: Any) -> Any:
        """The first rank's weights, which stay in this process until they are asked for; so what goes wrong is kept for ``exported``, too."""
        self._export_error: Exception | None = None
        try:
            return self.call("export_weights", *args)
        except Exception as error:
            self._export_error = error
            raise

    def exported(self) -> None:
        """Raises what the last export raised."""
        if self._export_error is not None:
            raise self._export_error

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """What the first rank returns; all others return nothing, so that it travels once."""
        result = getattr(self._trainer, method)(*args, **kwargs)
        return result if self._is_first else None


class RemoteTrainer:
    """Calls PolicyTrainer's methods on every rank: ``remote.policy_update(batch)`` waits for the result.

    ``turn`` is called before anything that the trainer must be awake for (``sleep``).
    """

    def __init__(self, spec: TrainerSpec, gpu_share: float = 0.0, transport: Transport = "host", turn: Callable[[], None] = lambda: None):
        self._turn, self.is_asleep = turn, False
        ranks = spec.layout.ranks
        self._group = _placement(ranks, gpu_share) if ranks > 1 else None
        if spec.num_threads:
            spec = replace(spec, num_threads=max(1, spec.num_threads // ranks))
        self._spec, self._transport = spec, transport
        self._actors = [
            ray.remote(**_options(spec, self._group, rank, gpu_share, transport))(_TrainerActor).remote() for rank in range(ranks)
        ]
        meeting = self._wait([self._actors[0].meeting.remote()]) if ranks > 1 else None
        self._wait([actor.make.remote(spec, RankPlace(rank, ranks, meeting)) for rank, actor in enumerate(self._actors)])

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: self._wait(self._call(method, *args, **kwargs))

    def export(self, version: int, dtype: str) -> Any:
        """A reference to the exported weights: they go from trainer to workers, never through the driver."""
        self._turn()
        direct = {} if self._transport == "host" else {"tensor_transport": self._transport}
        with self._blamed():  # a direct transport asks the actor whether it has one before the call is made
            try:
                references = [
                    actor.export.options(**(direct if rank == 0 else {})).remote(version, dtype, self._transport)
                    for rank, actor in enumerate(self._actors)
                ]
            except ValueError as error:
                raise TrainingError(f"rollout.transport: {self._transport} does not work here: {_first_line(error)}") from error
        self._wait(references, fetch=False)
        self._wait(
            [actor.exported.remote() for actor in self._actors]
        )  # a failure, or death, belongs here and not to those who wait for weights
        return references[0]

    def begin(self, method: str, *args: Any) -> Callable[[], Any]:
        """Call without waiting; what is returned waits for the result. Later calls are served after it."""
        references = self._call(method, *args)
        return lambda: self._wait(references)

    def sleep(self) -> None:
        """The trainer gives its GPU's memory back, until ``wake``."""
        if not self.is_asleep:
            self._wait([actor.call.remote("sleep") for actor in self._actors])
            self.is_asleep = True

    def wake(self) -> None:
        if self.is_asleep:
            self._wait([actor.call.remote("wake") for actor in self._actors])
            self.is_asleep = False

    def close(self) -> None:
        for actor in self._actors:
            ray.kill(actor)
        if self._group is not None:
            remove_placement_group(self._group)

    def _call(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        if method not in IN_ANY_PLACE:
            self._turn()
        shared = [ray.put(argument) for argument in args] if len(self._actors) > 1 else args
        return [actor.call.remote(method, *shared, **kwargs) for actor in self._actors]

    def _wait(self, references: list[Any], fetch: bool = True) -> Any:
        """The first rank's result. One that fails leaves the others waiting for it, so whichever is ready is looked at."""
        with self._blamed():
            waiting = list(references)
            while waiting:
                ready, waiting = ray.wait(waiting, fetch_local=fetch)
                if fetch or ready[0] is not references[0]:
                    ray.get(ready)
            return ray.get(references[0]) if fetch else None

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        """What goes wrong with the trainer, in words."""
        try:
            yield
        except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:  # the latter: ended by Ray before the kernel would
            raise TrainingError(f"{_death(self._spec)}; Ray says: {_first_line(error)}") from error
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ToolkitError):
                raise type(error.cause)(str(error.cause)) from None
            if _is_out_of_memory(error.cause):
                raise TrainingError(f"the trainer ran out of memory ({_first_line(error.cause)}). {_needs(self._spec)}") from None
            raise


def _death(spec: TrainerSpec) -> str:
    """What to think and do when a trainer's process is gone: out of memory is the commonest cause."""
    return f"the trainer's process died, most likely of too little memory. {_needs(spec)}"


def _is_out_of_memory(error: BaseException) -> bool:
    """On a GPU it has a class of its own; torch's allocator of main memory raises what any other mistake would."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _needs(spec: TrainerSpec) -> str:
    """What a trainer holds, what there is, and three things to change."""
    needs_reference = spec.algorithm is not None and spec.algorithm.needs_reference
    needed = footprint(spec.model, spec.optimizer, spec.layout, needs_reference, "cpu")
    tokens = spec.optimizer.max_tokens_per_micro_batch
    memory = psutil.virtual_memory()
    return (
        f"It holds {needed.in_words()}, and a pass has up to {tokens} tokens; this machine has {memory.total / 2**30:.1f} GiB, of which "
        f"{memory.available / 2**30:.1f} are free now. Lower max_tokens_per_micro_batch (by half), set gradient_checkpointing: true, or train with "
        "lora; then run again: the run resumes"
    )


def _placement(ranks: int, gpu_share: float) -> PlacementGroup:
    """A CPU and, where the cluster has any, its share of a GPU for each rank, near each other. Raises TrainingError where there are too few."""
    there = ray.cluster_resources()
    each = {"CPU": 1.0} | ({"GPU": gpu_share} if gpu_share else {})
    for kind in each:
        if there.get(kind, 0) < ranks * each[kind]:
            raise TrainingError(f"trainer.ranks = {ranks} needs {ranks} {kind}s, and there are {there.get(kind, 0):.0f}; lower it")
    group = placement_group([each] * ranks, strategy="PACK")
    if not group.wait(START_DEADLINE_S):
        remove_placement_group(group)
        raise TrainingError(
            f"no room for trainer.ranks = {ranks} within {START_DEADLINE_S:.0f} s: something else holds the cluster's {'s and '.join(each)}s"
        )
    return group


def _options(spec: TrainerSpec, group: PlacementGroup | None, rank: int, gpu_share: float, transport: Transport) -> dict[str, Any]:
    options: dict[str, Any] = {"num_cpus": 0, "num_gpus": gpu_share, "max_restarts": 0, "enable_tensor_transport": transport != "host"}
    if group is not None:
        options |= {"num_cpus": 1, "scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)}
    variables = ({} if gpu_share else KEEP_FREED_MEMORY) | {name: os.environ[name] for name in VARIABLES if name in os.environ}
    if spec.num_threads:
        variables |= {"OMP_NUM_THREADS": str(spec.num_threads), "TOKENIZERS_PARALLELISM": "false"}
    return {**options, "runtime_env": {"env_vars": variables}}
