"""From completions to scored groups and their advantages: what rewards are told of a sample, what comes back, what it is worth in its group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch

from grpo.algorithm import Algorithm
from grpo.algorithm.advantages import batch_normalised, without_cancelled, without_rounding
from grpo.config import RewardUse
from grpo.errors import TrainingError
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
                "tokens": tuple(completion.tokens.tolist()),
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
    algorithm: Algorithm, groups: Sequence[Group], weights: Mapping[str, float], divergence_PG: np.ndarray | None = None
) -> np.ndarray:
    """[P, G]: the algorithm's advantage of each sample; 0 for samples without a reward, which no batch will hold.

    ``weights`` are the rewards' by name. kl_coef times ``divergence_PG`` is taken from the sum of a sample's rewards; where the algorithm
    normalises each reward by itself, minus the divergence is one reward more, with the weight kl_coef.
    """
    judged_PG = torch.from_numpy(is_judged(groups))

    def advantage(values_PG: torch.Tensor, terms_PG: torch.Tensor | None = None) -> torch.Tensor:
        counts_PG = judged_PG & ~values_PG.isnan()
        return algorithm.advantage(without_rounding(values_PG.where(counts_PG, 0.0), counts_PG, terms_PG), counts_PG)

    weighted = [(weight, _table(groups, partial(_part, name))) for name, weight in weights.items()]
    if divergence_PG is not None:
        weighted.append((algorithm.kl_coef, -torch.from_numpy(divergence_PG)))
    if algorithm.per_reward:
        summands = [weight * advantage(values_PG) for weight, values_PG in weighted]
        advantages_PG = without_cancelled(sum(summands, torch.zeros(judged_PG.shape, dtype=torch.float64)), _size(summands, judged_PG))
    else:
        rewards_PG = _table(groups, lambda sample: sample.reward)
        terms_PG = _size([rewards_PG, *(weight * values_PG for weight, values_PG in weighted)], judged_PG)
        if divergence_PG is not None:
            rewards_PG = rewards_PG - algorithm.kl_coef * torch.from_numpy(divergence_PG)
        advantages_PG = advantage(rewards_PG, terms_PG)
    if algorithm.batch_normalise:
        advantages_PG = batch_normalised(advantages_PG, judged_PG)
    _check_finite(algorithm, groups, advantages_PG)
    return advantages_PG.numpy()


def _check_finite(algorithm: Algorithm, groups: Sequence[Group], advantages_PG: torch.Tensor) -> None:
    """Raises TrainingError for the first group whose advantages are no numbers: the gradient would be none, and name no reward."""
    for group, advantages_G in zip(groups, advantages_PG, strict=True):
        if not advantages_G.isfinite().all():
            rewards = ", ".join("none" if sample.reward is None else f"{sample.reward:g}" for sample in group.samples[:16])
            raise TrainingError(
                f"algorithm {algorithm.name!r} gave prompt {group.prompt.id!r} the advantages {advantages_G[:16].tolist()}, from the rewards "
                f"{rewards}; keep rewards and their weights far below 1e308, and divide by nothing that can be 0 in an advantage of your own"
            )


def has_signal(algorithm: Algorithm, group: Group, weights: Mapping[str, float]) -> bool:
    """Do the group's rewards give any of its samples an advantage? A divergence, in the loss or in the reward, is no reason to keep a group."""
    return bool(group_advantages(algorithm, [group], weights).any())


def _part(name: str, sample: Sample) -> float | None:
    return sample.parts.get(name)


def _table(groups: Sequence[Group], value_of: Callable[[Sample], float | None]) -> torch.Tensor:
    """[P, G] float64, NaN for None."""
    rows = [[float("nan") if (value := value_of(sample)) is None else value for sample in group.samples] for group in groups]
    return torch.tensor(rows, dtype=torch.float64)


def _size(terms: Sequence[torch.Tensor], judged_PG: torch.Tensor) -> torch.Tensor:
    """[P, G]: the sum of the terms' absolute values; a term that is not known counts for nothing."""
    return sum((term.nan_to_num(0.0).abs() for term in terms), torch.zeros(judged_PG.shape, dtype=torch.float64))


def is_judged(groups: Sequence[Group]) -> np.ndarray:
    """[P, G]: which samples have a reward."""
    return np.array([[sample.reward is not None for sample in group.samples] for group in groups])
