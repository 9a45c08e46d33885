"""What does a step say of itself? Its groups, its rewards and its time as metrics, and its samples as rows."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from grpo.config import Tags
from grpo.data.prompt_order import source_of
from grpo.types import Group, Sample
from rewards import RewardRuntime
from rewards.rules.extract import answer_text, think_text
from rewards.rules.repetition import repeated_share
from rollout.faults import fault_point
from rollout.types import Completion

MAXIMA = frozenset({"rollout/importance_max"})
COUNTS = frozenset({"train/empty_updates", "train/skipped_updates", "train/nonfinite_logprobs"})
"""Metrics of an update that a step does not average."""
MAX_TEXTS_READ = 256
"""Of a step, for repetition, in the driver; spread evenly over its groups."""


def group_metrics(groups: Sequence[Group], advantages_PG: np.ndarray, tags: Tags | None) -> dict[str, float]:
    """Of rewards, lengths and, where ``tags`` are asked for, form, over all samples; parts over those that they judged."""
    samples = [sample for group in groups for sample in group.samples]
    judged = [sample.reward for sample in samples if sample.reward is not None]
    metrics = {
        "reward/total": float(np.mean(judged)) if judged else float("nan"),
        "reward/total_std": float(np.std(judged)) if judged else float("nan"),
        "reward/unjudged": float(len(samples) - len(judged)),
        "reward/zero_variance_groups_frac": float((advantages_PG == 0).all(axis=1).mean()),
        "rollout/completion_tokens": float(np.mean([sample.completion.num_tokens for sample in samples])),
        "rollout/nonfinite_logprobs": float(sum(_num_nonfinite(sample.completion) for sample in samples)),
        "rollout/truncated_frac": float(np.mean([sample.completion.finish == "length" for sample in samples])),
        "rollout/repeated_4gram_frac": float(np.mean([repeated_share(text, 4) for text in _evenly_chosen_texts(samples)])),
    }
    if tags is not None:
        formed = [_has_both(sample, group, tags) for group in groups for sample in group.samples]
        metrics["rollout/well_formed_frac"] = float(np.mean(formed))
    for name in samples[0].parts:
        known = [value for sample in samples if (value := sample.parts[name]) is not None]
        metrics[f"reward/{name}"] = float(np.mean(known)) if known else float("nan")
    return metrics


def _has_both(sample: Sample, group: Group, tags: Tags) -> bool:
    text = sample.completion.text
    return think_text(text, group.prompt.prefill, tags.think) is not None and answer_text(text, tags.answer) is not None


def _num_nonfinite(completion: Completion) -> int:
    return int((completion.trainable & ~np.isfinite(completion.logprobs)).sum())


def _evenly_chosen_texts(samples: Sequence[Sample]) -> list[str]:
    """At most MAX_TEXTS_READ: a step of 8,192 samples x 10,000 tokens would keep the driver busy for longer than an update."""
    chosen = np.linspace(0, len(samples) - 1, min(len(samples), MAX_TEXTS_READ)).astype(int)
    return [samples[index].completion.text for index in chosen]


def metrics_by_source(groups: Sequence[Group]) -> dict[str, float]:
    """Mean reward and number of groups of each source, where a step has several."""
    by_source: dict[str, list[Group]] = {}
    for group in groups:
        by_source.setdefault(source_of(group.prompt), []).append(group)
    metrics: dict[str, float] = {}
    for name, members in by_source.items() if len(by_source) > 1 else ():
        judged = [sample.reward for group in members for sample in group.samples if sample.reward is not None]
        metrics[f"by_source/{name}_reward"] = float(np.mean(judged)) if judged else float("nan")
        metrics[f"by_source/{name}_groups"] = float(len(members))
    return metrics


def reward_failures(rewards: RewardRuntime) -> dict[str, float]:
    """How often each reward failed or abstained in this step; only what happened."""
    return {f"reward/{name}_{kind}": float(number) for name, kinds in rewards.counts.items() for kind, number in kinds.items() if number}


def reward_latency(rewards: RewardRuntime) -> dict[str, float]:
    """Seconds that a sample took with each reward: the mean, and what 95% stay below."""
    metrics = {}
    for name, seconds in rewards.seconds.items():
        if seconds:
            metrics |= {f"reward/{name}_s": float(np.mean(seconds)), f"reward/{name}_p95_s": float(np.percentile(seconds, 95))}
    return metrics


def sample_rows(groups: Sequence[Group], advantages_PG: np.ndarray, step: int) -> list[dict[str, Any]]:
    """One a sample, for samples.jsonl."""
    return [
        {
            "step": step + 1,
            "prompt_id": group.prompt.id,
            "prompt": group.prompt.columns["prompt"],
            "answer": group.prompt.columns.get("answer"),
            "text": sample.completion.text,
            "finish": sample.completion.finish,
            "completion_tokens": sample.completion.num_tokens,
            "reward": sample.reward,
            "parts": dict(sample.parts),
            **({"notes": dict(sample.notes)} if sample.notes else {}),
            "advantage": float(advantage),
            "version": sample.completion.version,
        }
        for group, advantages_G in zip(groups, advantages_PG, strict=True)
        for sample, advantage in zip(group.samples, advantages_G, strict=True)
    ]


def over_updates(updates: Sequence[dict[str, float]]) -> dict[str, float]:
    """What a step says of its updates: the largest of a maximum, the sum of a count, the mean of all else, over those that know the metric."""
    metrics = {}
    for name in dict.fromkeys(name for update in updates for name in update):
        known = [value for update in updates if not math.isnan(value := update.get(name, math.nan))]
        together = max if name in MAXIMA else sum if name in COUNTS else np.mean
        metrics[name] = float(together(known)) if known else math.nan
    return metrics


class Clock:
    """Where the time of a step goes: ``with clock("update"): ...``, then time/update_s."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.monotonic()
        self._name = ""

    def __call__(self, name: str) -> Clock:
        fault_point(name)
        self._name = name
        return self

    def __enter__(self) -> None:
        self._entered = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.seconds[self._name] = self.seconds.get(self._name, 0.0) + time.monotonic() - self._entered

    def metrics(self) -> dict[str, float]:
        return {**{f"time/{name}_s": seconds for name, seconds in self.seconds.items()}, "time/step_s": time.monotonic() - self._began}
