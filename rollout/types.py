"""The data that goes into an engine and comes out of it: prompts, sampling parameters, requests and completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Finish = Literal["stop", "length", "abort"]
Versions = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Prompt:
    """One row of data, rendered and tokenized.

    tokens     [L_prompt] ids, special tokens included, exactly as the engine receives them
    columns    the row's own fields (answer, language, ...); ``prompt`` is what the template was given, a string or a message list
    prefill    what the template already wrote of the assistant's turn ("<think>\\n" for some chat templates), else ""
    """

    id: str
    tokens: tuple[int, ...]
    columns: Mapping[str, Any] = field(default_factory=dict)
    prefill: str = ""


@dataclass(frozen=True)
class SamplingParams:
    """The distribution that tokens are sampled from, with vLLM's names.

    The engine samples with this object and the trainer takes its temperature from it, so the two cannot differ.
    ``temperature`` 0 is greedy; ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 switch those filters off. A ``stop`` string ends a completion and is
    the end of its text.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """One sample to generate. A request is never more than one sample, so each sample has its own seed and can fail and be retried alone."""

    id: str
    tokens: tuple[int, ...]
    sampling: SamplingParams
    seed: int


def sample_seed(seed: int, step: int, prompt_id: str, index: int) -> int:
    """The seed, in [0, 2^63), of sample ``index`` of ``prompt_id`` in ``step``: it does not depend on when or where the sample is generated.

    It is a hash because engines derive neighbouring random streams from neighbouring seeds.
    """
    import xxhash

    return xxhash.xxh3_64_intdigest(f"{seed}/{step}/{prompt_id}/{index}".encode()) >> 1


@dataclass(frozen=True, eq=False)
class Completion:
    """One generated sample. ``Completion.of`` makes one from sequences of numbers.

    tokens     [L] int64 ids, including the end token if that is why finish is "stop"
    logprobs   [L] float64 natural log-probabilities under the sampling distribution (after temperature and filters), each from the weights
               version that sampled the token
    trainable  [L] bool, False for tokens that a tool wrote rather than the policy
    text       the tokens as text, without special tokens other than EngineSettings.keep, up to the end of a stop string
    versions   ((first token index, weights version), ...): one pair, or several if the weights changed in flight
    """

    tokens: np.ndarray
    logprobs: np.ndarray
    trainable: np.ndarray
    text: str
    finish: Finish
    versions: Versions

    @staticmethod
    def of(
        tokens: Sequence[int], logprobs: Sequence[float], trainable: Sequence[bool], text: str, finish: Finish, versions: Versions
    ) -> Completion:
        columns = np.array(tokens, np.int64), np.array(logprobs, np.float64), np.array(trainable, bool)
        for column in columns:
            column.setflags(write=False)
        return Completion(*columns, text, finish, versions)

    @property
    def version(self) -> int:
        """The weights version that sampled the last token."""
        return self.versions[-1][1]

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    def as_row(self) -> dict[str, Any]:
        """A JSON object from which ``Completion.of_row`` restores the same completion, bit for bit."""
        return {
            "text": self.text,
            "finish": self.finish,
            "versions": self.versions,
            "tokens": self.tokens.tolist(),
            "logprobs": self.logprobs.tolist(),
            "trainable": self.trainable.tolist(),
        }

    @staticmethod
    def of_row(row: Mapping[str, Any]) -> Completion:
        versions = tuple((start, version) for start, version in row["versions"])
        return Completion.of(row["tokens"], row["logprobs"], row["trainable"], row["text"], row["finish"], versions)

    def __eq__(self, other: object) -> bool:
        """Equal to the bit, NaN log-probabilities included."""
        return self.__reduce__() == other.__reduce__() if isinstance(other, Completion) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.__reduce__())

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle bytes instead of arrays: this halves the time that Ray takes for a step's completions, and keeps nothing pinned in its store."""
        return _from_bytes, (
            self.tokens.tobytes(),
            self.logprobs.tobytes(),
            self.trainable.tobytes(),
            self.text,
            self.finish,
            self.versions,
        )


def _from_bytes(tokens: bytes, logprobs: bytes, trainable: bytes, text: str, finish: Finish, versions: Versions) -> Completion:
    return Completion(
        np.frombuffer(tokens, np.int64), np.frombuffer(logprobs, np.float64), np.frombuffer(trainable, bool), text, finish, versions
    )


@dataclass(frozen=True)
class Finished:
    """The end of a request: its completion, or the error that prevented one."""

    request_id: str
    completion: Completion | None
    error: str | None = None
