"""Scores batches of samples by several rewards, in processes where a reward that hangs or crashes costs its own sample only."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from rewards.errors import RewardError, one_line
from rewards.function import RewardFn
from rewards.load import build_reward, missing_column
from rewards.processes import Processes
from rewards.worker import Outcome, late, load_all, score_batch, score_some

CHUNK_SAMPLES = 64
CHUNK_BUDGET_S = 1.0
GRACE_S = 0.5
START_DEADLINE_S = 120.0
NOT_ASKED = "a column is missing"
COUNTED = ("error", "timeout", "undecidable", "abstained")


@dataclass(frozen=True)
class RewardSpec:
    """One reward of a sum.

    name             how metrics call it; by default as the function is called
    required         None: as the reward itself says
    max_error_frac   the share of a step's samples on which it may fail (an error, or a deadline missed by no fault of the completion);
                     more than that, or an error on all, is a RewardError
    """

    ref: str
    name: str | None = None
    weight: float = 1.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    required: bool | None = None
    max_error_frac: float = 1.0


@dataclass(frozen=True)
class ScoreInput:
    """One sample: the prompt's columns and the reserved names (completion, prompt, finish, tokens, ...), by name."""

    columns: Mapping[str, Any]


@dataclass(frozen=True)
class Scored:
    """reward is the weighted sum of the parts that are not None; None where a required part is, or all are. notes say why a part is odd:
    "undecidable", "timeout", "abstained" or "error: ...". seconds is what each part took, where that is known."""

    reward: float | None
    parts: Mapping[str, float | None]
    notes: Mapping[str, str]
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class _Job:
    """Samples that one process scores by one reward. ``is_last``: what fails now has failed for good."""

    name: str
    indices: Sequence[int]
    is_last: bool = False


class RewardRuntime:
    """Several rewards, summed. Processes start with the first score; use it as a context manager, or close it.

    deadline_s   what one sample may take with one reward. A batch reward gets one call for all n samples, and n/16 times as long.
    processes    how many score at the same time
    base         the folder that paths in refs are relative to
    memory_gib   what a process may allocate

    At its deadline a sample is interrupted; if that does not help, its process is killed. Samples travel in chunks: where a process dies
    or is killed, the samples of its chunk are scored again one by one, so that only the one at fault pays. A dead process is an error, a
    missed deadline a timeout, or undecidable where the reward says so. Calls from several threads take turns.
    """

    def __init__(
        self,
        specs: Sequence[RewardSpec],
        deadline_s: float = 5.0,
        processes: int = 1,
        base: Path | str | None = None,
        memory_gib: float | None = 4.0,
    ):
        base = Path(base or ".").resolve()
        self.rewards: dict[str, RewardFn] = {}
        self.specs: dict[str, RewardSpec] = {}
        self.required: set[str] = set()
        for spec in specs:
            fn = build_reward(spec.ref, spec.settings, base)
            name = spec.name or fn.name
            if name in self.rewards:
                raise RewardError(f"two rewards are called {name!r} ({self.specs[name].ref} and {spec.ref}); give one of them another name")
            self.rewards[name], self.specs[name] = fn, spec
            if fn.required if spec.required is None else spec.required:
                self.required.add(name)
        self.first_error: dict[str, str] = {}
        self._deadline_s, self._num_processes = deadline_s, processes
        uses = [(name, spec.ref, dict(spec.settings)) for name, spec in self.specs.items()]
        self._processes = Processes(processes, prepare=load_all, prepare_args=(uses, base), memory_gib=memory_gib)
        self._counts: Counter[tuple[str, str]] = Counter()
        self._seconds: dict[str, list[float]] = {name: [] for name in self.rewards}
        self._columns_seen: set[str] = set()
        self._lock = threading.Lock()

    def score(self, inputs: Sequence[ScoreInput]) -> list[Scored]:
        """Scores one step's samples. A reward that raises on all of them, or fails on more than its max_error_frac, is broken: RewardError,
        with its first traceback."""
        if not inputs:
            return []
        with self._lock:
            rows = [sample.columns for sample in inputs]
            outcomes: dict[str, list[Outcome | None]] = {name: [None] * len(rows) for name in self.rewards}
            self._run(rows, [job for name in self.rewards for job in self._plan(name, rows, outcomes[name])], outcomes)
            for name in self.rewards:
                self._count(name, outcomes[name])
            return [self._sum({name: outcomes[name][index] for name in self.rewards}) for index in range(len(rows))]

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """{name: {"error", "timeout", "undecidable", "abstained": n}} since this was last read."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        return {name: {status: counts[name, status] for status in COUNTED} for name in self.rewards}

    @property
    def seconds(self) -> dict[str, list[float]]:
        """{name: what each sample took} since this was last read; without samples that it was not asked about."""
        with self._lock:
            seconds, self._seconds = self._seconds, {name: [] for name in self.rewards}
        return seconds

    def forget_statistics(self) -> None:
        """What was counted, timed and raised so far was a trial and belongs to no step."""
        with self._lock:
            self._counts, self._seconds = Counter(), {name: [] for name in self.rewards}
            self.first_error.clear()

    @property
    def accuracy(self) -> str | None:
        """The name of the reward that says whether an answer is right: the first rule that is required, else the first that reads a
        column answer. None where there is none."""
        rules = [name for name, fn in self.rewards.items() if not fn.options.by_model]
        readers = [name for name in rules if "answer" in (*self.rewards[name].columns, *self.rewards[name].optional)]
        return next((name for name in rules if name in self.required), next(iter(readers), None))

    def close(self) -> None:
        """Kills the processes, whatever they are doing."""
        self._processes.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _plan(self, name: str, rows: Sequence[Mapping[str, Any]], outcomes: list[Outcome | None]) -> list[_Job]:
        """The jobs of one reward. Rows without a column it needs (mixed data) abstain; where no row has ever had it, it is misspelt."""
        fn, ready = self.rewards[name], []
        for index, row in enumerate(rows):
            self._columns_seen.update(row)
            if fn.missing(row):
                outcomes[index] = Outcome(None, "abstained", NOT_ASKED)
            else:
                ready.append(index)
        if not ready and (missing := fn.missing(self._columns_seen)):
            raise RewardError(f"reward {name!r}: {missing_column(missing[0], self._columns_seen)}")
        if fn.is_batch:
            return [_Job(name, ready, is_last=True)] if ready else []
        size = max(1, min(CHUNK_SAMPLES, -(-len(ready) // self._num_processes)))
        return [_Job(name, ready[start : start + size], is_last=size == 1) for start in range(0, len(ready), size)]

    def _run(self, rows: Sequence[Mapping[str, Any]], jobs: Sequence[_Job], outcomes: Mapping[str, list[Outcome | None]]) -> None:
        """Runs jobs, and those that follow from them, until every sample has an outcome."""
        queue, num_broken = deque(jobs), 0
        running: dict[Future, _Job] = {}
        while queue or running:
            while queue:
                job = queue.popleft()
                running[self._submit(job, rows)] = job
            done, _ = wait(running, timeout=START_DEADLINE_S + self._batch_deadline_s(len(rows)), return_when=FIRST_COMPLETED)
            is_broken = not done
            for future in done:
                job = running.pop(future)
                try:
                    queue.extend(self._settle(job, future, outcomes[job.name]))
                except BrokenProcessPool:
                    queue.append(job)
                    is_broken = True
            num_broken = num_broken + 1 if is_broken else 0
            if is_broken:
                queue.extend(running.values())
                running.clear()
                self._processes.close()
            if num_broken == 3:
                raise RewardError(f"the processes of rewards {', '.join(self.rewards)} hang or die while loading")

    def _submit(self, job: _Job, rows: Sequence[Mapping[str, Any]]) -> Future:
        fn = self.rewards[job.name]
        samples = [fn.pick(rows[index]) for index in job.indices]
        if fn.is_batch:
            limit_s = self._batch_deadline_s(len(samples))
            return self._processes.submit(score_batch, job.name, samples, limit_s, deadline_s=limit_s + GRACE_S)
        budget_s = 0.0 if job.is_last else min(CHUNK_BUDGET_S, self._deadline_s)
        limit_s = self._deadline_s + budget_s + GRACE_S
        return self._processes.submit(score_some, job.name, samples, self._deadline_s, budget_s, deadline_s=limit_s)

    def _settle(self, job: _Job, future: Future, outcomes: list[Outcome | None]) -> list[_Job]:
        """Files the outcomes of a finished job, and returns the jobs for samples that have none yet."""
        try:
            found = future.result()
        except BrokenProcessPool:
            raise
        except Exception as error:  # what a dead process or an unpicklable sample left behind
            if not job.is_last:
                return [_Job(job.name, [index], is_last=True) for index in job.indices]
            found = [self._fate(job, error)] * len(job.indices)
        for index, outcome in zip(job.indices, found, strict=False):
            outcomes[index] = outcome
        rest = job.indices[len(found) :]
        return [_Job(job.name, rest)] if rest else []

    def _fate(self, job: _Job, error: Exception) -> Outcome:
        """What a job that came back without outcomes means for its samples."""
        fn = self.rewards[job.name]
        if isinstance(error, TimeoutError):
            limit_s = self._batch_deadline_s(len(job.indices)) if fn.is_batch else self._deadline_s
            return late(fn, limit_s)._replace(seconds=limit_s / len(job.indices))
        code = getattr(error, "exitcode", None)
        what = one_line(error) if code is None else f"its process died (exit code {code})"
        return Outcome(None, "error", what, what)

    def _batch_deadline_s(self, num_samples: int) -> float:
        return self._deadline_s * max(1.0, num_samples / 16)

    def _count(self, name: str, outcomes: Sequence[Outcome | None]) -> None:
        failed = [(index, outcome) for index, outcome in enumerate(outcomes) if outcome and outcome.status in ("error", "timeout")]
        errors = [(index, outcome) for index, outcome in failed if outcome.status == "error"]
        if errors and name not in self.first_error:
            self.first_error[name] = f"reward {name!r}, sample {errors[0][0]}: {errors[0][1].trace}"
        asked = [outcome for outcome in outcomes if outcome and outcome.detail != NOT_ASKED]
        allowed = self.specs[name].max_error_frac
        if errors and len(errors) == len(asked):
            raise RewardError(
                f"reward {name!r} failed on all {len(asked)} samples; the first, sample {errors[0][0]}:\n{errors[0][1].trace}"
            )
        if len(failed) > allowed * len(asked):
            index, first = (errors or failed)[0]
            raise RewardError(
                f"reward {name!r} failed on {len(failed)} of {len(asked)} samples, more than its max_error_frac of {allowed:g} allows; "
                f"the first, sample {index}:\n{first.trace or first.detail}"
            )
        self._counts.update((name, outcome.status) for outcome in outcomes if outcome and outcome.status in COUNTED)
        self._seconds[name] += [outcome.seconds for outcome in asked if outcome.seconds is not None]

    def _sum(self, outcomes: Mapping[str, Outcome | None]) -> Scored:
        parts = {name: outcome.value if outcome else None for name, outcome in outcomes.items()}
        notes = {name: _note(outcome) for name, outcome in outcomes.items() if outcome and outcome.status != "scored"}
        dropped = all(value is None for value in parts.values()) or any(parts[name] is None for name in self.required)
        total = None if dropped else sum(self.specs[name].weight * value for name, value in parts.items() if value is not None)
        seconds = {name: outcome.seconds for name, outcome in outcomes.items() if outcome and outcome.seconds is not None}
        return Scored(total, parts, notes, seconds)


def _note(outcome: Outcome) -> str:
    return f"error: {outcome.detail}" if outcome.status == "error" else outcome.status
