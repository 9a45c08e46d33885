"""Who draws a step's samples, when, and by which weights? A thread of its own: up to ``max_staleness`` updates before they are trained on.

The steps' prompts are drawn in the steps' order, each step once. Step j may be drawn once the weights of step j - max_staleness (counted from
the first) have been posted:

    deterministic       by exactly those weights, so that a run repeats
    otherwise           by the newest that have been posted, and with ``in_flight`` weights change while its samples are being drawn
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

Meanwhile = Callable[[], None]
Draw = Callable[[int, Meanwhile], list[list[Completion]]]
CLOSE_DEADLINE_S = 30.0


@dataclass(frozen=True)
class Drawn:
    """A step's samples, and how long it took to draw them."""

    completions: list[list[Completion]]
    seconds: float

    @property
    def oldest_version(self) -> int:
        return min(completion.versions[0][1] for group in self.completions for completion in group)

    @property
    def changed_in_flight_frac(self) -> float:
        """Of the samples, those that more than one version drew."""
        changed = [len(completion.versions) > 1 for group in self.completions for completion in group]
        return sum(changed) / len(changed)

    @property
    def tokens_per_s(self) -> float:
        return sum(completion.num_tokens for group in self.completions for completion in group) / self.seconds


@dataclass(frozen=True, eq=False)
class Posted:
    """New weights on their way to the engines. ``receipts`` come with their sync, ``found`` is what ``then`` returned after it."""

    export: Callable[[], Any]
    version: int
    then: Callable[[Meanwhile], Any] | None
    receipts: Future[list[SyncReceipt]] = field(default_factory=Future)
    found: Future[Any] = field(default_factory=Future)


class Ahead:
    """Between ``with`` and its end only this uses the pool. What goes wrong in its thread is raised by whichever method is called next.

    A run that stops and goes on with the same samples keeps what ``drawn_by_older_weights`` returns with its weights, and gives it back as ``kept``.

    draw    draws the samples of a step, and calls its second argument now and then, which may change the weights, or raise to end the drawing
    steps   all that are still to be drawn
    kept    the first of them that are not, because weights drew them that are gone
    """

    def __init__(
        self,
        pool: RolloutPool,
        draw: Draw,
        steps: range,
        *,
        max_staleness: int = 0,
        is_deterministic: bool = True,
        in_flight: bool = False,
        kept: Sequence[Drawn] = (),
    ):
        assert not (in_flight and is_deterministic), "when weights change is a matter of time"
        self._pool, self._draw, self._steps = pool, draw, steps
        self._max_staleness, self._is_deterministic, self._in_flight = max_staleness, is_deterministic, in_flight
        self._drawn: dict[int, Future[Drawn]] = {step: Future() for step in steps}
        self._posts: deque[Posted] = deque()
        self._kept = kept
        self._num_synced = 0
        self._changed = threading.Condition()
        self._is_closing = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="rollouts", daemon=True)

    def __enter__(self) -> Ahead:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def result(self, step: int) -> Drawn:
        """The samples of ``step``, once they are there; each is given out once."""
        drawn = self._drawn[step].result()
        del self._drawn[step]
        return drawn

    def post(self, export: Callable[[], Any], version: int, then: Callable[[Meanwhile], Any] | None = None) -> Posted:
        """Hand over new weights, once a step, as ``RolloutPool.sync`` takes them, and what to do with exactly these (which is to be waited for, and
        calls its argument now and then, which may raise to end it).

        Returns at once. Where nothing is drawn before the sync, ``export`` is called by it; else here, before the trainer goes on.
        """
        if self._max_staleness:
            exported = export()
            export = lambda: exported  # noqa: E731
        posted = Posted(export, version, then)
        with self._changed:
            if self._failure is not None:
                raise self._failure
            self._posts.append(posted)
            self._changed.notify()
        return posted

    def drawn_by_older_weights(self, step: int) -> list[Drawn]:
        """What the weights posted after ``step`` would not draw again: the samples of the next ``max_staleness`` steps, waited for."""
        return [self._drawn[later].result() for later in self._steps if step < later <= step + self._max_staleness]

    def close(self) -> None:
        """End the thread: what is being drawn is cancelled, what has been posted is synced no more."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(CLOSE_DEADLINE_S)

    # ------------------------------------------------------------------------------------------------------------ in the thread

    def _run(self) -> None:
        try:
            self._draw_all()
        except BaseException as error:  # it is raised where the samples, or the sync, are waited for
            with self._changed:
                self._failure = error
                waited_for = [*self._drawn.values(), *(future for post in self._posts for future in (post.receipts, post.found))]
            for future in waited_for:
                if not future.done():
                    future.set_exception(error)

    def _draw_all(self) -> None:
        for ready, step in enumerate(self._steps):
            while ready > self._num_synced + self._max_staleness:
                self._sync(self._next())
            if ready < len(self._kept):
                self._drawn[step].set_result(self._kept[ready])
                continue
            if not self._is_deterministic:
                self._sync_newest()
            began = time.monotonic()
            completions = self._draw(step, self._meanwhile)
            self._drawn[step].set_result(Drawn(completions, time.monotonic() - began))
        while True:
            self._sync(self._next())

    def _next(self) -> Posted:
        """What was posted first, once there is something."""
        with self._changed:
            self._changed.wait_for(lambda: self._posts or self._is_closing)
            self._raise_if_closing()
            return self._posts[0]

    def _meanwhile(self) -> None:
        self._raise_if_closing()
        if self._in_flight and self._pool.mode == "in_place" and not any(post.then for post in self._posts):
            self._sync_newest()

    def _sync_newest(self) -> None:
        """Only the last of what has been posted; the weights before it are not needed any more."""
        while len(self._posts) > 1:
            self._posts[0].receipts.set_result([])
            self._done(self._posts[0])
        if self._posts:
            self._sync(self._posts[0])

    def _sync(self, post: Posted) -> None:
        post.receipts.set_result(self._pool.sync(post.export, post.version))
        self._done(post, post.then(self._raise_if_closing) if post.then is not None else None)

    def _done(self, post: Posted, found: Any = None) -> None:
        self._posts.popleft()
        self._num_synced += 1
        post.found.set_result(found)

    def _raise_if_closing(self) -> None:
        if self._is_closing:
            raise TrainingError("the stage ended while samples were being drawn for it")


def as_json(drawn: Sequence[Drawn]) -> list[dict[str, Any]]:
    """As a checkpoint keeps them, every number to the bit."""
    return [
        {"seconds": step.seconds, "completions": [[completion.as_row() for completion in group] for group in step.completions]}
        for step in drawn
    ]


def drawn_from_json(kept: Sequence[Mapping[str, Any]]) -> list[Drawn]:
    """What ``as_json`` was given."""
    return [Drawn([[Completion.of_row(c) for c in group] for group in step["completions"]], step["seconds"]) for step in kept]
