"""What goes into an engine and what comes out of it: prompts, requests, completions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

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
    """How tokens are drawn. ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 switch those filters off. ``stop``: texts that end a
    completion, and are the end of its text."""

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


class TokenArrays(NamedTuple):
    """What is known of each token, [L] each: int64, float64, bool. Not to be written to."""

    tokens: np.ndarray
    logprobs: np.ndarray
    trainable: np.ndarray


@dataclass(frozen=True)
class Completion:
    """One sample as the engine drew it.

    tokens     [L] ids, the end token included when finish is "stop" by it
    logprobs   [L] natural log-probabilities of the distribution sampled from (after temperature and filters), each by the version that drew it
    trainable  [L] False for tokens that a tool wrote rather than the policy
    text       what the tokens say, without special tokens other than EngineSettings.keep, up to the end of a stop string
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

    @property
    def num_tokens(self) -> int:
        return len(self.arrays.tokens)

    @property
    def arrays(self) -> TokenArrays:
        """Tokens, log-probabilities and flags as arrays, which is how they travel: nothing is copied of a completion from another process."""
        if "_arrays" not in self.__dict__:
            made = np.array(self.tokens, np.int64), np.array(self.logprobs, np.float64), np.array(self.trainable, bool)
            object.__setattr__(self, "_arrays", TokenArrays(*made))
        return self.__dict__["_arrays"]

    def __getattr__(self, name: str) -> tuple[Any, ...]:
        """The tuples of a completion from another process, made when first asked for: for a whole step they would take the driver longer than
        everything else it does."""
        if name not in TokenArrays._fields or "_arrays" not in self.__dict__:
            raise AttributeError(name)
        object.__setattr__(self, name, tuple(getattr(self.arrays, name).tolist()))
        return self.__dict__[name]

    def as_row(self) -> dict[str, Any]:
        """For JSON; ``Completion.of_row`` makes the same of it, bit for bit."""
        return {
            "text": self.text,
            "finish": self.finish,
            "versions": self.versions,
            **{name: getattr(self, name) for name in TokenArrays._fields},
        }

    @staticmethod
    def of_row(row: Mapping[str, Any]) -> Completion:
        numbers = {name: tuple(row[name]) for name in TokenArrays._fields}
        return Completion(
            **numbers, text=row["text"], finish=row["finish"], versions=tuple((at, version) for at, version in row["versions"])
        )

    def __reduce__(self) -> tuple[Any, ...]:
        numbers = (column.tobytes() for column in self.arrays)
        return _from_bytes, (*numbers, self.text, self.finish, self.versions)


def _from_bytes(tokens: bytes, logprobs: bytes, trainable: bytes, text: str, finish: Finish, versions: Any) -> Completion:
    arrays = np.frombuffer(tokens, np.int64), np.frombuffer(logprobs, np.float64), np.frombuffer(trainable, bool)
    completion = object.__new__(Completion)
    completion.__dict__.update(text=text, finish=finish, versions=versions, _arrays=TokenArrays(*arrays))
    return completion


@dataclass(frozen=True)
class Finished:
    """A request's end: its completion, or why there is none."""

    request_id: str
    completion: Completion | None
    error: str | None = None
