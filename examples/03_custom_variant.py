"""A variant of the algorithm of your own: a row of the table with one part replaced.

    grpo run r1_zero_tiny stages.reason.algorithm=./examples/03_custom_variant.py:RANKS

The trainer does not know the algorithm's name, only its parts: advantage, surrogate, clip, aggregation, KL.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from grpo.algorithm import GRPO


def rank_advantage(rewards_PG: Tensor, counts_PG: Tensor) -> Tensor:
    """Ranks instead of rewards: from -1 for the worst of a group to +1 for the best, equal rewards sharing their mean rank.

    How far apart two rewards are no longer matters, so one outlier cannot dominate a group. Shapes [P, G].
    """
    valid_PGG = counts_PG[:, :, None] & counts_PG[:, None, :]
    above_PG = ((rewards_PG[:, :, None] > rewards_PG[:, None, :]) & valid_PGG).sum(dim=2)
    below_PG = ((rewards_PG[:, :, None] < rewards_PG[:, None, :]) & valid_PGG).sum(dim=2)
    others_P1 = (counts_PG.sum(dim=1, keepdim=True) - 1).clamp(min=1)
    return (above_PG - below_PG).double() / others_P1


RANKS = replace(GRPO, name="ranks", paper="ours", advantage=rank_advantage)


def main() -> None:
    rewards_PG = torch.tensor([[0.0, 1.0, 1.0, 100.0], [2.0, 2.0, 2.0, 2.0]])
    everyone = torch.ones_like(rewards_PG, dtype=torch.bool)
    print("grpo: ", GRPO.advantage(rewards_PG, everyone).tolist())
    print("ranks:", RANKS.advantage(rewards_PG, everyone).tolist())


if __name__ == "__main__":
    main()
