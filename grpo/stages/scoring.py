"""From completions to scored groups and their advantages: what rewards are told of a sample, what comes back, what it is worth in its group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from grpo.algorithm import Algorithm
from grpo.algorithm.advantages import batch_normalised
from grpo.config import RewardUse
from grpo.types import Group, Sample
from rewards import RewardRuntime, ScoreInput
from rollout.types import Completion, Prompt


def score_inputs(prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]]) -> list[ScoreInput]:
    """One input a sample, prompt by prompt: the row's columns, and the reserved names that describe the completion."""
    return [
        ScoreInput(
            {
                **prompt.columns,
                "prompt_id": prompt.id,
                "prefill": prompt.prefill,
                "completion": completion.text,
                "finish": completion.finish,
                "tokens": completion.tokens,
                "num_tokens": completion.num_tokens,
            },
            group=number,
        )
        for number, (prompt, drawn) in enumerate(zip(prompts, completions, strict=True))
        for completion in drawn
    ]


def score_groups(
    runtime: RewardRuntime,
    prompts: Sequence[Prompt],
    completions: Sequence[Sequence[Completion]],
    weights: Mapping[str, float] | None = None,
) -> list[Group]:
    """Group i holds prompt i and its samples, each with its reward and parts: sample j is completion j of prompt i.

    weights: those of the rewards to run, by name; by default all, as specified.
    """
    scored = iter(runtime.score(score_inputs(prompts, completions), weights))
    groups = []
    for prompt, drawn in zip(prompts, completions, strict=True):
        judged = [(completion, next(scored)) for completion in drawn]
        samples = (Sample(prompt.id, completion, score.reward, score.parts, score.notes) for completion, score in judged)
        groups.append(Group(prompt, tuple(samples)))
    return groups


def weights_at(uses: Sequence[RewardUse], update: int) -> dict[str, float]:
    """The weights in force once so many updates are made. A reward whose schedule is at 0 is left out, and so not run; one whose only
    weight is 0 is run and watched."""
    return {use.part: use.weight_at(update) for use in uses if use.weight_at(update) != 0 or not use.is_scheduled}


def group_advantages(
    algorithm: Algorithm, groups: Sequence[Group], weights: Mapping[str, float], penalty_PG: np.ndarray | None = None
) -> np.ndarray:
    """[P, G]: the algorithm's advantage of each sample; 0 for samples without a reward, which no batch will hold.

    ``weights`` are the rewards' by name; ``penalty_PG`` is taken from the sum of a sample's rewards.
    """
    judged_PG = torch.from_numpy(is_judged(groups))

    def advantage(values: Sequence[Sequence[float | None]]) -> torch.Tensor:
        values_PG = torch.tensor([[float("nan") if v is None else v for v in row] for row in values], dtype=torch.float64)
        return algorithm.advantage(values_PG.nan_to_num(0.0), judged_PG & ~values_PG.isnan())

    if algorithm.per_reward:
        advantages_PG = sum(
            (weight * advantage([[s.parts[name] for s in group.samples] for group in groups]) for name, weight in weights.items()),
            torch.zeros(judged_PG.shape, dtype=torch.float64),
        )
        if penalty_PG is not None:
            advantages_PG = advantages_PG + advantage((-penalty_PG).tolist())
    else:
        penalty = np.zeros(judged_PG.shape) if penalty_PG is None else penalty_PG
        rewards = [
            [None if s.reward is None else s.reward - taken for s, taken in zip(group.samples, row, strict=True)]
            for group, row in zip(groups, penalty.tolist(), strict=True)
        ]
        advantages_PG = advantage(rewards)
    if algorithm.batch_normalise:
        advantages_PG = batch_normalised(advantages_PG, judged_PG)
    return advantages_PG.numpy()


def is_judged(groups: Sequence[Group]) -> np.ndarray:
    """[P, G]: which samples have a reward."""
    return np.array([[sample.reward is not None for sample in group.samples] for group in groups])
