"""Scores batches of samples by several rewards, in processes where a reward that hangs or crashes costs its own sample only."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from rewards.errors import RewardError, one_line
from rewards.function import RewardFn, with_settings
from rewards.load import build_reward, missing_column
from rewards.processes import Processes
from rewards.worker import Outcome, late, load_all, load_failure, score_batch, score_some

CHUNK_SAMPLES = 64
CHUNK_BUDGET_S = 1.0
GRACE_S = 0.5
ANSWER_S = 30.0
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
    """One sample: the prompt's columns and the reserved names (completion, prompt, finish, tokens, ...), by name.

    group: equal for samples of one prompt, for rewards that judge groups; by default the column prompt_id says so.
    """

    columns: Mapping[str, Any]
    group: Hashable = None


@dataclass(frozen=True)
class Scored:
    """reward is the weighted sum of the parts that are not None; None where a required part is, or all are. notes say why a part is odd:
    "undecidable", "timeout", "abstained" or "error: ...", or what the reward itself noted ("abstained: ..." where it gave no number). seconds is
    what each part took, where that is known."""

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

    deadline_s   what one sample may take with one reward. A batch reward gets one call for all n samples, and n/16 times as long; one that
                 judges groups, a call for each prompt's n samples.
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
        shared = [name for name, fn in self.rewards.items() if not fn.options.alone]
        self._processes = Processes(processes, prepare=load_all, prepare_args=(self._uses(shared), base), memory_gib=memory_gib)
        self._own_process = {
            name: Processes(1, prepare=load_all, prepare_args=(self._uses([name]), base), memory_gib=None)
            for name in self.rewards
            if name not in shared
        }
        self._counts: Counter[tuple[str, str]] = Counter()
        self._seconds: dict[str, list[float]] = {name: [] for name in self.rewards}
        self._columns_seen: set[str] = set()
        self._lock = threading.Lock()

    def score(self, inputs: Sequence[ScoreInput], weights: Mapping[str, float] | None = None) -> list[Scored]:
        """Scores one step's samples. A reward that raises on all of them, or fails on more than its max_error_frac, is broken: RewardError,
        with its first traceback.

        weights: those in force now, by name; rewards that are not among them are not run and have no part. By default all, as specified.
        """
        weights = {name: spec.weight for name, spec in self.specs.items()} if weights is None else weights
        if not inputs:
            return []
        with self._lock:
            rows = [sample.columns for sample in inputs]
            outcomes: dict[str, list[Outcome | None]] = {name: [None] * len(rows) for name in self.rewards if name in weights}
            self._run(rows, [job for name in outcomes for job in self._plan(name, inputs, outcomes[name])], outcomes)
            for name in outcomes:
                self._count(name, outcomes[name])
            return [self._sum({name: outcomes[name][index] for name in outcomes}, weights) for index in range(len(rows))]

    def load(self) -> None:
        """Starts the processes that rewards have to themselves, so that a model that can't be loaded is known now: RewardError."""
        with self._lock:
            waiting = {name: own.submit(load_failure, name, deadline_s=ANSWER_S) for name, own in self._own_process.items()}
            for name, future in waiting.items():
                limit_s = self.rewards[name].options.prepare_s
                try:
                    failed = future.result(timeout=limit_s)
                except (BrokenProcessPool, OSError, TimeoutError) as error:
                    raise RewardError(
                        f"the process of reward {name!r} hangs (for {limit_s:g} s) or dies while loading: {one_line(error)}"
                    ) from None
                if failed is not None:
                    raise RewardError(f"reward {name!r} cannot be loaded: {failed.trace}")

    def expect_columns(self, names: Iterable[str]) -> None:
        """Columns that some rows to come will have: a reward that needs one of them abstains on rows without, and is not misspelt."""
        self._columns_seen.update(names)

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
        """The name of the reward that says whether an answer is right: the first rule that sees what is right and is required, else the
        first that names it. None where there is none; an opinion is no exact match."""
        rules = {name: fn for name, fn in self.rewards.items() if not fn.options.by_model}
        seeing = [name for name, fn in rules.items() if name in self.required and (fn.options.gold or fn.knows("answer"))]
        naming = [name for name, fn in rules.items() if "answer" in (*fn.columns, *fn.optional)]
        return next(iter([*seeing, *naming]), None)

    def close(self) -> None:
        """Kills the processes, whatever they are doing."""
        for processes in (self._processes, *self._own_process.values()):
            processes.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _uses(self, names: Sequence[str]) -> list[tuple[str, str, dict[str, Any]]]:
        return [(name, self.specs[name].ref, dict(self.specs[name].settings)) for name in names]

    def _plan(self, name: str, inputs: Sequence[ScoreInput], outcomes: list[Outcome | None]) -> list[_Job]:
        """The jobs of one reward. Rows without a column it needs (mixed data) abstain; where no row has ever had it, it is misspelt."""
        fn, ready, rows = self.rewards[name], [], [sample.columns for sample in inputs]
        for index, row in enumerate(rows):
            self._columns_seen.update(row)
            if fn.missing(row):
                outcomes[index] = Outcome(None, "abstained", NOT_ASKED)
            else:
                ready.append(index)
        if not ready and (missing := fn.missing(self._columns_seen)):
            raise RewardError(f"reward {name!r}: {missing_column(missing[0], self._columns_seen)}")
        if fn.options.scope == "group":
            return [_Job(name, group, is_last=True) for group in _groups(name, inputs, ready)]
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
            done, _ = wait(running, timeout=max(map(self._patience_s, running.values())), return_when=FIRST_COMPLETED)
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
                self.close()
            if num_broken == 3:
                raise RewardError(f"the processes of rewards {', '.join(self.rewards)} hang or die while loading")

    def _submit(self, job: _Job, rows: Sequence[Mapping[str, Any]]) -> Future:
        fn = self.rewards[job.name]
        samples = [fn.pick(rows[index]) for index in job.indices]
        processes = self._processes_of(job.name)
        if fn.is_batch:
            limit_s = self._batch_deadline_s(fn, len(samples))
            return processes.submit(score_batch, job.name, samples, limit_s, deadline_s=limit_s + GRACE_S)
        budget_s = 0.0 if job.is_last else min(CHUNK_BUDGET_S, self._deadline_s)
        limit_s = self._deadline_s + budget_s + GRACE_S
        return processes.submit(score_some, job.name, samples, self._deadline_s, budget_s, deadline_s=limit_s)

    def _processes_of(self, name: str) -> Processes:
        return self._own_process.get(name, self._processes)

    def _settle(self, job: _Job, future: Future, outcomes: list[Outcome | None]) -> list[_Job]:
        """Files the outcomes of a finished job, and returns the jobs for samples that have none yet."""
        try:
            found = future.result()
        except BrokenProcessPool:
            raise
        except Exception as error:  # what a dead process or an unpicklable sample left behind
            self._processes_of(job.name).end_children_of_the_dead()
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
            limit_s = self._batch_deadline_s(fn, len(job.indices)) if fn.is_batch else self._deadline_s
            return late(fn, limit_s)._replace(seconds=limit_s / len(job.indices))
        code = getattr(error, "exitcode", None)
        what = one_line(error) if code is None else f"its process died (exit code {code})"
        return Outcome(None, "error", what, what)

    def _batch_deadline_s(self, fn: RewardFn, num_samples: int) -> float:
        if fn.options.deadline is not None:
            return with_settings(fn.options.deadline, fn.settings)
        return self._deadline_s * max(1.0, num_samples / 16)

    def _patience_s(self, job: _Job) -> float:
        """After what time without any result processes are taken for broken."""
        fn = self.rewards[job.name]
        return fn.options.prepare_s + self._batch_deadline_s(fn, len(job.indices))

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

    def _sum(self, outcomes: Mapping[str, Outcome | None], weights: Mapping[str, float]) -> Scored:
        parts = {name: outcome.value if outcome else None for name, outcome in outcomes.items()}
        notes = {name: note for name, outcome in outcomes.items() if outcome and (note := _note(outcome))}
        dropped = all(value is None for value in parts.values()) or any(parts[name] is None for name in self.required & parts.keys())
        total = None if dropped else sum(weights[name] * value for name, value in parts.items() if value is not None)
        seconds = {name: outcome.seconds for name, outcome in outcomes.items() if outcome and outcome.seconds is not None}
        return Scored(total, parts, notes, seconds)


def _note(outcome: Outcome) -> str:
    if outcome.status == "scored":
        return outcome.detail
    said = outcome.detail if outcome.status in ("error", "abstained") and outcome.detail != NOT_ASKED else ""
    return f"{outcome.status}: {said}" if said else outcome.status


def _groups(name: str, inputs: Sequence[ScoreInput], indices: Sequence[int]) -> list[list[int]]:
    """Those of ``indices`` that belong to one prompt, together."""
    groups: dict[Hashable, list[int]] = {}
    for index in indices:
        key = inputs[index].columns.get("prompt_id") if inputs[index].group is None else inputs[index].group
        if key is None:
            raise RewardError(f"reward {name!r} judges groups, and sample {index} does not say whose prompt's it is: prompt_id is missing")
        groups.setdefault(key, []).append(index)
    return list(groups.values())
