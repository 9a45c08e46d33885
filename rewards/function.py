"""What a reward is: a function, what it asks for, its settings, and how it is called."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any, Literal, NamedTuple

from rewards.errors import RewardError, Undecidable

RESERVED = {
    "completion": "the completion's text",
    "prompt": "what the template was given: a string or a message list",
    "prompt_id": "the prompt's id",
    "prefill": "what the template already wrote of the assistant's turn, such as '<think>\\n'",
    "finish": "how the completion ended: stop, length or abort",
    "tokens": "the completion's token ids",
    "num_tokens": "how many they are",
}
BATCH_NAMES = {"prompts": "prompt", "completions": "completion", "completion_ids": "tokens"}
"""Names that TRL's batch rewards use, and the reserved name each is a list of."""


@dataclass(frozen=True)
class Options:
    """What ``@reward(...)`` says about a function.

    required       a sample that this reward abstains on is dropped
    undecidable    what a sample scores that makes the function raise Undecidable, or run past its deadline; None abstains
    check          from the settings to a problem in one line, or None
    prepare        called once in each process before the first call, outside of any deadline, with those settings that it names: imports
                   that take long, a model
    prepare_s      what that may take
    scope          "group": a function of lists (completions, ...) is called once for each prompt, with all its samples, and not once for all
    columns        from the settings to the columns that it needs besides its parameters; they reach it by **kwargs
    deadline       from the settings to what one call of a function of lists may take, in seconds, where the runtime's rule does not fit
    alone          it has a process to itself, without a bound on memory: it holds a model, or waits for others
    gold           the column that says what is right, for an accuracy reward: where required, it is tried on it before training
    write          from that to how an answer says it, in a fence, say (by default in a box)
    check_gold     from a gold answer to what is wrong with its form in one line, or None; asked before training, by the canary
    said           from a completion, its prefill and the settings to the answer that the function reads there, or None: what a majority vote
                   is about
    by_model       a model gives it, so a policy can learn to please it: watched against the rewards that follow rules
    """

    required: bool = False
    undecidable: float | None = None
    check: Callable[..., str | None] | None = None
    prepare: Callable[..., Any] | None = None
    prepare_s: float = 120.0
    gold: str | None = None
    write: Callable[[str], str] | None = None
    scope: Literal["group"] | None = None
    columns: Callable[..., Sequence[str]] | None = None
    deadline: Callable[..., float] | None = None
    alone: bool = False
    check_gold: Callable[[str], str | None] | None = None
    said: Callable[..., str | None] | None = None
    by_model: bool = False

    def __post_init__(self) -> None:
        if self.scope not in (None, "group"):
            raise ValueError(f"@reward(scope={self.scope!r}): scope is 'group', or left out")


class Noted(NamedTuple):
    """What a reward may return for a sample in place of a number: the score, or None to abstain, and what is to be said of it."""

    score: float | None
    note: str


def with_settings(function: Callable, settings: Mapping[str, Any]) -> Any:
    """Calls ``function`` with those settings that it names."""
    return function(**{name: settings[name] for name in inspect.signature(function).parameters if name in settings})


def reward(function: Callable | None = None, /, **options: Any) -> Callable:
    """Marks a function as a reward and says how it is meant (see Options). It stays the plain function that it was."""

    def mark(function: Callable) -> Callable:
        function.reward_options = Options(**options)  # type: ignore[attr-defined]
        return function

    return mark if function is None else mark(function)


@dataclass(frozen=True)
class RewardFn:
    """A reward ready to be called: ``fn(completion=..., answer=...) -> float | None``, or lists in and out where ``is_batch``.

    columns     names it cannot do without, data columns and reserved names alike
    optional    names it uses where they are there
    settings    every setting it has, with the value in force
    takes_all   it has **kwargs and gets all columns
    """

    name: str
    ref: str
    function: Callable
    columns: tuple[str, ...]
    optional: tuple[str, ...]
    settings: Mapping[str, Any]
    options: Options = Options()
    is_batch: bool = False
    takes_all: bool = False

    @property
    def required(self) -> bool:
        return self.options.required

    @property
    def undecidable(self) -> float | None:
        return self.options.undecidable

    def __call__(self, **values: Any) -> Any:
        """Calls it here and now, in this process. Names that it does not ask for are ignored."""
        if missing := [name for name in self.columns if name not in values]:
            raise RewardError(f"reward {self.name!r} needs {', '.join(map(repr, missing))}; given: {sorted(values)}")
        if self.is_batch:
            results = self._one_each(self._call(values), len(values["completions"]))
            return [self._score(partial(self.read, value, index)) for index, value in enumerate(results)]
        return self._score(lambda: self.read(self.call_one(values)))

    @property
    def is_async(self) -> bool:
        """Can many samples be awaited at once? (A function of lists sees to that itself.)"""
        return inspect.iscoroutinefunction(self.function) and not self.is_batch

    def read(self, value: Any, index: int | None = None) -> Noted:
        """A return value as a score and its note. An exception returned in a sample's place is raised."""
        if isinstance(value, BaseException):
            raise value
        score, note = value if isinstance(value, Noted) else (value, "")
        return Noted(as_score(score, self.name, index), note)

    def knows(self, column: str) -> bool:
        """Does the function get to see this column?"""
        return self.takes_all or column in self.columns or column in self.optional

    def missing(self, names: Container[str]) -> list[str]:
        """The columns that it needs and a sample with these names lacks."""
        wanted = [BATCH_NAMES.get(column, column) if self.is_batch else column for column in self.columns]
        return [column for column in wanted if column not in names]

    def pick(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The part of one sample's values that it asks for, so that no more travels to another process."""
        if self.takes_all:
            return dict(values)
        names = {*self.columns, *self.optional}
        if self.is_batch:
            names |= {"completion", "prompt", "tokens", "prefill"}
        return {name: values[name] for name in names if name in values}

    def call_one(self, values: Mapping[str, Any]) -> Any:
        """What the function returns for one sample."""
        return self._call(values)

    async def await_one(self, values: Mapping[str, Any]) -> Any:
        """call_one for a coroutine function, inside of an event loop."""
        return await self.function(**self._arguments(values))

    def call_batch(self, samples: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Calls a batch reward as TRL does, with lists over samples; the values it returned are not checked yet, only how many they are.

        Completions are messages where the prompt is a message list. What the template prefilled belongs to the assistant's turn, so they
        include it.
        """
        names = {name for sample in samples for name in sample} - set(BATCH_NAMES.values())
        lists: dict[str, list] = {name: [sample.get(name) for sample in samples] for name in names}
        lists["prompts"] = [sample.get("prompt") for sample in samples]
        lists["completion_ids"] = [sample.get("tokens") for sample in samples]
        lists["completions"] = [_assistant_turn(sample) for sample in samples]
        return self._one_each(self._call(lists), len(samples))

    def _score(self, read: Callable[[], Noted]) -> float | None:
        try:
            return read().score
        except Undecidable:
            return self.undecidable

    def _arguments(self, values: Mapping[str, Any]) -> dict[str, Any]:
        wanted = values if self.takes_all else {name: values[name] for name in (*self.columns, *self.optional) if name in values}
        return {**wanted, **self.settings}

    def _call(self, values: Mapping[str, Any]) -> Any:
        result = self.function(**self._arguments(values))
        return asyncio.run(_wait_for(result)) if inspect.isawaitable(result) else result

    def _one_each(self, result: Any, num_samples: int) -> list[Any]:
        if isinstance(result, str) or not hasattr(result, "__len__"):
            raise RewardError(f"reward {self.name!r} returned {_shown(result)} for {num_samples} samples; return a list of numbers")
        if len(result) != num_samples:
            raise RewardError(f"reward {self.name!r} returned {len(result)} numbers for {num_samples} samples; return one for each")
        return list(result)


def as_score(value: Any, name: str, index: int | None = None) -> float | None:
    """A reward's return value as a finite float, or None. Booleans and the scalars of numpy and torch are numbers; the rest is an error."""
    if value is None:
        return None
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, Real) and math.isfinite(value):
        return float(value)
    at = "" if index is None else f" for sample {index}"
    raise RewardError(f"reward {name!r} returned {_shown(value)}{at}; return a finite number, or None to abstain")


def _assistant_turn(sample: Mapping[str, Any]) -> Any:
    text = (sample.get("prefill") or "") + sample["completion"]
    return text if isinstance(sample.get("prompt"), str | None) else [{"role": "assistant", "content": text}]


async def _wait_for(awaitable: Any) -> Any:
    return await awaitable


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 80 else text[:77] + '...'} ({type(value).__name__})"
