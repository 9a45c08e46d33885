"""The few types that pass between the rooms. P prompts, G samples per prompt, B = P*G, L one sequence's length, T padded length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rollout.types import Completion, Prompt


@dataclass(frozen=True)
class Sample:
    """A completion and what it was judged to be worth. ``reward`` None: nobody could judge it, and it does not count.

    notes: by reward, why a part is odd; parts that are not have none.
    """

    prompt_id: str
    completion: Completion
    reward: float | None
    parts: Mapping[str, float | None]
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """A prompt and its G samples: the unit of advantage, filtering and retry."""

    prompt: Prompt
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face folder (config, safetensors, tokenizer) that transformers and vLLM load."""

    path: Path


@dataclass(frozen=True)
class Dataset:
    """A folder with rows.jsonl (columns prompt, completion, ...) and provenance.json."""

    path: Path


Artifact = Checkpoint | Dataset
