"""The advantage of each sample in its group, from the rewards, their weights and a KL penalty that belongs to the reward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch

from grpo.algorithm import Algorithm
from grpo.algorithm.advantages import batch_normalised, without_cancelled, without_rounding
from grpo.errors import TrainingError
from grpo.types import Group, Sample


def group_advantages(
    algorithm: Algorithm, groups: Sequence[Group], weights: Mapping[str, float], kl_PG: np.ndarray | None = None
) -> np.ndarray:
    """[P, G]: the algorithm's advantage of each sample; 0 for samples without a reward, which no batch will hold.

    ``weights`` are the rewards' weights by name. kl_coef times ``kl_PG`` is subtracted from the sum of a sample's rewards; where the algorithm
    normalises each reward by itself, minus the KL is one more reward, with the weight kl_coef.
    """
    scored_PG = torch.from_numpy(is_scored(groups))

    def advantage(values_PG: torch.Tensor, terms_PG: torch.Tensor | None = None) -> torch.Tensor:
        counts_PG = scored_PG & ~values_PG.isnan()
        return algorithm.advantage(without_rounding(values_PG.where(counts_PG, 0.0), counts_PG, terms_PG), counts_PG)

    weighted = [(weight, _table(groups, partial(_part, name))) for name, weight in weights.items()]
    if kl_PG is not None:
        weighted.append((algorithm.kl_coef, -torch.from_numpy(kl_PG)))
    if algorithm.per_reward:
        summands = [weight * advantage(values_PG) for weight, values_PG in weighted]
        advantages_PG = without_cancelled(sum(summands, torch.zeros(scored_PG.shape, dtype=torch.float64)), _size(summands, scored_PG))
    else:
        rewards_PG = _table(groups, lambda sample: sample.reward)
        terms_PG = _size([rewards_PG, *(weight * values_PG for weight, values_PG in weighted)], scored_PG)
        if kl_PG is not None:
            rewards_PG = rewards_PG - algorithm.kl_coef * torch.from_numpy(kl_PG)
        advantages_PG = advantage(rewards_PG, terms_PG)
    if algorithm.batch_normalise:
        advantages_PG = batch_normalised(advantages_PG, scored_PG)
    _check_finite(algorithm, groups, advantages_PG)
    return advantages_PG.numpy()


def _check_finite(algorithm: Algorithm, groups: Sequence[Group], advantages_PG: torch.Tensor) -> None:
    """Raises TrainingError for the first group whose advantages are not finite: the gradient's own error would name no reward."""
    for group, advantages_G in zip(groups, advantages_PG, strict=True):
        if not advantages_G.isfinite().all():
            rewards = ", ".join("none" if sample.reward is None else f"{sample.reward:g}" for sample in group.samples[:16])
            raise TrainingError(
                f"algorithm {algorithm.name!r} gave prompt {group.prompt.id!r} the advantages {advantages_G[:16].tolist()}, from the rewards "
                f"{rewards}; keep rewards and their weights far below 1e308, and divide by nothing that can be 0 in an advantage of your own"
            )


def has_signal(algorithm: Algorithm, group: Group, weights: Mapping[str, float]) -> bool:
    """Whether the group's rewards give any of its samples an advantage. A KL penalty, in the loss or in the reward, is no reason to keep a group."""
    return bool(group_advantages(algorithm, [group], weights).any())


def _part(name: str, sample: Sample) -> float | None:
    return sample.parts.get(name)


def _table(groups: Sequence[Group], value_of: Callable[[Sample], float | None]) -> torch.Tensor:
    """[P, G] float64, NaN for None."""
    rows = [[float("nan") if (value := value_of(sample)) is None else value for sample in group.samples] for group in groups]
    return torch.tensor(rows, dtype=torch.float64)


def _size(terms: Sequence[torch.Tensor], scored_PG: torch.Tensor) -> torch.Tensor:
    """[P, G]: the sum of the terms' absolute values; an unknown term counts as 0."""
    return sum((term.nan_to_num(0.0).abs() for term in terms), torch.zeros(scored_PG.shape, dtype=torch.float64))


def is_scored(groups: Sequence[Group]) -> np.ndarray:
    """[P, G]: which samples have a reward."""
    return np.array([[sample.reward is not None for sample in group.samples] for group in groups])
