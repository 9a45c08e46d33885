"""How much better than its siblings was a sample? One number per sample, from the rewards of its group."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

EQUAL_WITHIN = 1e-9


def group_centre(rewards_PG: Tensor, counts_PG: Tensor) -> Tensor:
    """Reward minus the mean of its group: A_ij = r_ij - mean_j(r_ij).

    Dr. GRPO's advantage (arXiv:2503.20783): dividing by the spread would favour prompts that are almost always, or almost never, solved.
    counts_PG is True where the sample has a reward; elsewhere the reward is ignored and the advantage is 0.
    A group whose rewards are all equal gets exact zeros: equality is tested, because rounding alone would leave a residue
    (0.1 three times has a mean that is not 0.1). Arguments and result have shape [P, G].
    """
    rewards_PG = rewards_PG.double().where(counts_PG, 0.0)
    num_P1 = counts_PG.sum(dim=1, keepdim=True).clamp(min=1)
    scale_P1 = _power_of_two(rewards_PG.abs().amax(dim=1, keepdim=True))
    mean_P1 = (rewards_PG / scale_P1).sum(dim=1, keepdim=True) / num_P1 * scale_P1
    return (rewards_PG - mean_P1).where(counts_PG & ~_all_equal(rewards_PG, counts_PG), 0.0)


def group_zscore(rewards_PG: Tensor, counts_PG: Tensor) -> Tensor:
    """Reward in standard deviations from the mean of its group: A_ij = (r_ij - mean_j(r_ij)) / std_j(r_ij).

    DeepSeekMath (arXiv:2402.03300), section 4.1.2. The paper publishes neither the divisor of its std nor an epsilon: ours divides by n - 1
    and adds nothing, since groups of equal rewards, the only ones with std 0, get exact zeros before the division.
    Arguments and result have shape [P, G].
    """
    centred_PG = group_centre(rewards_PG, counts_PG)
    centred_PG = centred_PG / _power_of_two(centred_PG.abs().amax(dim=1, keepdim=True))
    num_P1 = counts_PG.sum(dim=1, keepdim=True)
    variance_P1 = centred_PG.square().sum(dim=1, keepdim=True) / (num_P1 - 1).clamp(min=1)
    return (centred_PG / variance_P1.sqrt()).where(centred_PG != 0, 0.0)


def leave_one_out(rewards_PG: Tensor, counts_PG: Tensor) -> Tensor:
    """Reward minus the mean of its siblings' rewards: A_ij = r_ij - mean_{k != j}(r_ik) = n / (n - 1) (r_ij - mean_k(r_ik)).

    RLOO (Ahmadian et al., arXiv:2402.14740, eq. 7): a baseline that does not depend on the sample itself keeps the estimate unbiased.
    Arguments and result have shape [P, G].
    """
    num_P1 = counts_PG.sum(dim=1, keepdim=True).double()
    return group_centre(rewards_PG, counts_PG) * (num_P1 / (num_P1 - 1).clamp(min=1))


def batch_normalised(advantages_PG: Tensor, counts_PG: Tensor) -> Tensor:
    """Advantages divided by their standard deviation over the whole batch: REINFORCE++ (arXiv:2501.03262, eq. 9) and GDPO (arXiv:2601.05242).

    Both papers also subtract the batch's mean. Advantages of whole groups have mean 0 already, so we don't: a group of equal rewards keeps
    its exact zeros. The divisor is n - 1. Arguments and result have shape [P, G]; a batch without any advantage is left as it is.
    """
    advantages_PG = advantages_PG.where(counts_PG, 0.0)
    advantages_PG = advantages_PG / _power_of_two(advantages_PG.abs().amax())
    variance = advantages_PG.square().sum() / (counts_PG.sum() - 1).clamp(min=1)
    return advantages_PG / variance.sqrt().where(variance > 0, 1.0)


def without_rounding(rewards_PG: Tensor, counts_PG: Tensor, terms_PG: Tensor | None = None) -> Tensor:
    """The rewards, where a group's differ by rounding only made one number: for advantages that don't test equality themselves.

    ``terms_PG`` is the size of what each reward is the sum of: 1e8 (0.1 + 0.2 - 0.3) is 6e-9, and rounding of terms of 1e8.
    """
    equal_P1 = _all_equal(rewards_PG, counts_PG, terms_PG)
    return rewards_PG.where(~(equal_P1 & counts_PG), rewards_PG.where(counts_PG, float("-inf")).amax(dim=1, keepdim=True))


def without_cancelled(advantages_PG: Tensor, terms_PG: Tensor) -> Tensor:
    """The advantages, 0 in groups where those of single rewards cancel: what is left there is rounding of ``terms_PG``, their sizes."""
    left_P1, terms_P1 = (each_PG.abs().amax(dim=1, keepdim=True) for each_PG in (advantages_PG, terms_PG))
    return advantages_PG.where(left_P1 > EQUAL_WITHIN * terms_P1, 0.0)


def _all_equal(rewards_PG: Tensor, counts_PG: Tensor, terms_PG: Tensor | None = None) -> Tensor:
    """[P, 1]: True for groups in which every counted reward is the same (groups of none or one included).

    Sums of parts that are equal on paper may differ in their last bits: 0.1 + 0.2 and 0.3, or 0.1 + 0.2 - 0.3 and 0. Dividing by such a
    spread would make a signal of rounding, so rewards within 1e-9 of each other are equal, and within 1e-9 of the largest of them, or of
    ``terms_PG`` where that is given.
    """
    highest_P1 = rewards_PG.where(counts_PG, float("-inf")).amax(dim=1, keepdim=True)
    lowest_P1 = rewards_PG.where(counts_PG, float("inf")).amin(dim=1, keepdim=True)
    sizes_PG = rewards_PG.abs() if terms_PG is None else terms_PG
    largest_P1 = sizes_PG.where(counts_PG, 0.0).amax(dim=1, keepdim=True)
    return highest_P1 - lowest_P1 <= EQUAL_WITHIN * largest_P1.clamp(1.0, 1e308)


def _power_of_two(largest: Tensor) -> Tensor:
    """The power of two at or below ``largest``, 1 for 0: dividing by it changes no digit, and sums and squares do not overflow."""
    mantissa, _ = largest.frexp()
    return (largest / (2 * mantissa)).where(largest > 0, 1.0)
