"""What goes into an engine and what comes out of it: prompts, requests, completions."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Finish = Literal["stop", "length", "abort"]


@dataclass(frozen=True)
class Prompt:
    """One row of data, rendered and tokenised.

    tokens     [L_prompt] ids, special tokens included, exactly as the engine receives them
    columns    the row's own fields (answer, language, ...); ``prompt`` is what the template was given, a string or a message list
    prefill    what the template already wrote of the assistant's turn ("<think>\\n" for some chat templates), else ""
    """

    id: str
    tokens: tuple[int, ...]
    columns: Mapping[str, Any] = field(default_factory=dict)
    prefill: str = ""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 switch those filters off."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """One sample to draw: a request is never more than one sample, so that each has a seed and a fate of its own."""

    id: str
    tokens: tuple[int, ...]
    sampling: Sampling
    seed: int


@dataclass(frozen=True)
class Completion:
    """One sample as the engine drew it.

    tokens     [L] ids, the end token included when finish is "stop" by it
    logprobs   [L] natural log-probabilities of the distribution sampled from (after temperature and filters)
    trainable  [L] False for tokens that a tool wrote rather than the policy
    versions   ((first token index, weights version), ...): one pair, or several when weights changed in flight
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    trainable: tuple[bool, ...]
    text: str
    finish: Finish
    versions: tuple[tuple[int, int], ...]

    @property
    def version(self) -> int:
        """The version that drew the last token."""
        return self.versions[-1][1]

    def __reduce__(self) -> tuple[Any, ...]:
        """Between processes as bytes: a million numbers as Python objects would take the driver longer than everything else it does."""
        trainable = None if all(self.trainable) else bytes(self.trainable)
        numbers = array("q", self.tokens).tobytes(), array("d", self.logprobs).tobytes()
        return _from_bytes, (*numbers, trainable, self.text, self.finish, self.versions)


def _from_bytes(tokens: bytes, logprobs: bytes, trainable: bytes | None, text: str, finish: Finish, versions: Any) -> Completion:
    ids, floats = array("q", tokens), array("d", logprobs)
    known = (True,) * len(ids) if trainable is None else tuple(map(bool, trainable))
    return Completion(tuple(ids), tuple(floats), known, text, finish, versions)


@dataclass(frozen=True)
class Finished:
    """A request's end: its completion, or why there is none."""

    request_id: str
    completion: Completion | None
    error: str | None = None
