"""How good is a model, and how sure are we? Scores of a held-out set from several samples of each problem."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence


def mean_and_standard_error(scores_PK: Sequence[Sequence[float]]) -> tuple[float, float]:
    """avg@k: the mean over problems of each problem's mean over its samples, and the standard error over problems.

    Samples of one problem are not independent, so the error comes from the spread of the problems' means: std(n - 1) / sqrt(problems).
    With one problem the error is NaN: unknown, not zero.
    """
    means = [sum(scores) / len(scores) for scores in scores_PK]
    mean = sum(means) / len(means)
    if len(means) < 2:
        return mean, math.nan
    variance = sum((value - mean) ** 2 for value in means) / (len(means) - 1)
    return mean, math.sqrt(variance / len(means))


def paired_difference(scores_PK: Sequence[Sequence[float]], others_PK: Sequence[Sequence[float]]) -> tuple[float, float]:
    """avg@k of the first minus that of the others, on the same problems in the same order, and the standard error of that difference.

    It comes from the problems' own differences, so what is easy or hard for both drops out: std(n - 1) / sqrt(problems).
    """
    differences = [sum(a) / len(a) - sum(b) / len(b) for a, b in zip(scores_PK, others_PK, strict=True)]
    return mean_and_standard_error([[difference] for difference in differences])


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Unbiased probability that at least one of k samples is right: 1 - C(n - c, k) / C(n, k). Chen et al. (arXiv:2107.03374), eq. 1.

    Raises ValueError for k > n, where no unbiased estimate exists.
    """
    if k > num_samples:
        raise ValueError(f"pass@{k} needs at least {k} samples a problem, found {num_samples}; raise evaluation.samples_per_prompt")
    return 1.0 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)


def majority_score(answers: Sequence[Hashable | None], scores: Sequence[float]) -> float:
    """maj@k of one problem: the score of its commonest answer, None (no answer) not voting; ties share alike. No votes at all: 0.

    Where samples of one answer have different scores (a right answer, ill-formed once), their mean is the answer's score.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = {answer for answer, count in votes.items() if count == most}
    won = [score for answer, score in zip(answers, scores, strict=True) if answer in winners]
    return sum(won) / len(won)
