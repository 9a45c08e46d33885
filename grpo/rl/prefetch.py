"""Rollouts sampled in a thread of their own, up to ``max_staleness`` weight pushes before they are trained on.

Rollouts are sampled in the order of the steps, each once. Step j may be sampled once the weights of step j - max_staleness (counted from the
first) have been pushed:

    deterministic       by exactly those weights, so that a run repeats
    otherwise           by the newest that have been pushed, and with ``in_flight`` the weights change while samples are being generated
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from grpo.errors import TrainingError
from rollout.pool import RolloutPool
from rollout.types import Completion
from rollout.worker import SyncReceipt

Poll = Callable[[], None]
"""Called now and then by whatever takes long in the thread. It may change the weights, or raise to end the work."""
Generate = Callable[[int, Poll], list[list[Completion]]]
CLOSE_DEADLINE_S = 30.0


@dataclass(frozen=True)
class StepRollout:
    """A step's completions [P][G], and how long it took to generate them."""

    completions: list[list[Completion]]
    seconds: float

    @property
    def oldest_version(self) -> int:
        return min(completion.versions[0][1] for group in self.completions for completion in group)

    @property
    def changed_in_flight_frac(self) -> float:
        """The fraction of samples that more than one version of the weights generated."""
        changed = [len(completion.versions) > 1 for group in self.completions for completion in group]
        return sum(changed) / len(changed)

    @property
    def tokens_per_s(self) -> float:
        return sum(completion.num_tokens for group in self.completions for completion in group) / self.seconds


@dataclass(frozen=True, eq=False)
class WeightPush:
    """New weights on their way to the engines. ``receipts`` come with their sync; ``evaluation`` is what ``evaluate`` returned after it."""

    export: Callable[[], Any]
    version: int
    evaluate: Callable[[Poll], Any] | None
    receipts: Future[list[SyncReceipt]] = field(default_factory=Future)
    evaluation: Future[Any] = field(default_factory=Future)


class RolloutPrefetcher:
    """Between ``start`` and ``close`` only this object uses the pool. An error in its thread is raised by whichever method is called next.

    A run that stops and is resumed with the same samples keeps what ``rollouts_of_older_weights`` returns in its checkpoint, and passes it as
    ``kept``.

    generate   samples a step's rollout, and polls
    steps      all steps that are still to be sampled
    kept       rollouts of the first of these, whose weights are gone
    """

    def __init__(
        self,
        pool: RolloutPool,
        generate: Generate,
        steps: range,
        *,
        max_staleness: int = 0,
        is_deterministic: bool = True,
        in_flight: bool = False,
        kept: Sequence[StepRollout] = (),
    ):
        assert not (in_flight and is_deterministic), "when weights change is a matter of time"
        self._pool, self._generate, self._steps = pool, generate, steps
        self._max_staleness, self._is_deterministic, self._in_flight = max_staleness, is_deterministic, in_flight
        self._rollouts: dict[int, Future[StepRollout]] = {step: Future() for step in steps}
        self._pushes: deque[WeightPush] = deque()
        self._kept = kept
        self._num_synced = 0
        self._changed = threading.Condition()
        self._is_closing = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="rollouts", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def result(self, step: int) -> StepRollout:
        """The rollout of ``step``, waited for; each is returned once."""
        rollout = self._rollouts[step].result()
        del self._rollouts[step]
        return rollout

    def push(self, export: Callable[[], Any], version: int, evaluate: Callable[[Poll], Any] | None = None) -> WeightPush:
        """Hand over new weights, once a step, as ``RolloutPool.sync`` takes them. ``evaluate`` runs with exactly these weights.

        Returns at once. If nothing is sampled before the sync, the sync calls ``export``; otherwise it is called here, before the trainer
        changes its weights again.
        """
        if self._max_staleness:
            exported = export()
            export = lambda: exported  # noqa: E731
        push = WeightPush(export, version, evaluate)
        with self._changed:
            if self._failure is not None:
                raise self._failure
            self._pushes.append(push)
            self._changed.notify()
        return push

    def rollouts_of_older_weights(self, step: int) -> list[StepRollout]:
        """What the weights pushed after ``step`` would not sample again: the rollouts of the next ``max_staleness`` steps, waited for."""
        return [self._rollouts[later].result() for later in self._steps if step < later <= step + self._max_staleness]

    def close(self) -> None:
        """End the thread: what is being generated is cancelled, and pushes that wait are not synced any more."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(CLOSE_DEADLINE_S)

    # ------------------------------------------------------------------------------------------------------------ in the thread

    def _run(self) -> None:
        try:
            self._sample_all()
        except BaseException as error:  # it is raised where the samples, or the sync, are waited for
            with self._changed:
                self._failure = error
                waited_for = [*self._rollouts.values(), *(future for push in self._pushes for future in (push.receipts, push.evaluation))]
            for future in waited_for:
                if not future.done():
                    future.set_exception(error)

    def _sample_all(self) -> None:
        for ready, step in enumerate(self._steps):
            while ready > self._num_synced + self._max_staleness:
                self._sync(self._next())
            if ready < len(self._kept):
                self._rollouts[step].set_result(self._kept[ready])
                continue
            if not self._is_deterministic:
                self._sync_newest()
            began = time.monotonic()
            completions = self._generate(step, self._poll)
            self._rollouts[step].set_result(StepRollout(completions, time.monotonic() - began))
        while True:
            self._sync(self._next())

    def _next(self) -> WeightPush:
        """The first push that waits, once there is one."""
        with self._changed:
            self._changed.wait_for(lambda: self._pushes or self._is_closing)
            self._raise_if_closing()
            return self._pushes[0]

    def _poll(self) -> None:
        self._raise_if_closing()
        if self._in_flight and self._pool.mode == "in_place" and not any(push.evaluate for push in self._pushes):
            self._sync_newest()

    def _sync_newest(self) -> None:
        """Sync only the last of the waiting pushes; the weights before it are not needed any more."""
        while len(self._pushes) > 1:
            self._pushes[0].receipts.set_result([])
            self._done(self._pushes[0])
        if self._pushes:
            self._sync(self._pushes[0])

    def _sync(self, push: WeightPush) -> None:
        push.receipts.set_result(self._pool.sync(push.export, push.version))
        self._done(push, push.evaluate(self._raise_if_closing) if push.evaluate is not None else None)

    def _done(self, push: WeightPush, evaluation: Any = None) -> None:
        self._pushes.popleft()
        self._num_synced += 1
        push.evaluation.set_result(evaluation)

    def _raise_if_closing(self) -> None:
        if self._is_closing:
            raise TrainingError("the stage ended while samples were being generated for it")


def rollouts_as_json(rollouts: Sequence[StepRollout]) -> list[dict[str, Any]]:
    """The form in which a checkpoint keeps them, every number to the bit."""
    return [
        {"seconds": rollout.seconds, "completions": [[completion.as_row() for completion in group] for group in rollout.completions]}
        for rollout in rollouts
    ]


def rollouts_from_json(kept: Sequence[Mapping[str, Any]]) -> list[StepRollout]:
    """The inverse of ``rollouts_as_json``."""
    return [StepRollout([[Completion.of_row(c) for c in group] for group in step["completions"]], step["seconds"]) for step in kept]
