"""The scores of a model on a set of problems: avg@n with standard error, pass@k and maj@k, from graded items."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo.algorithm.statistics import majority_score, mean_and_standard_error, pass_at_k
from grpo.config import Evaluation
from grpo.errors import TrainingError


@dataclass(frozen=True)
class Scores:
    """The scores of one model on one set of problems. ``accuracy``: right and well-formed; ``lenient``: right, whatever the form."""

    accuracy: float
    accuracy_se: float
    lenient: float
    lenient_se: float
    well_formed: float
    truncated_frac: float
    completion_tokens: float
    num_problems: int
    num_unjudged: int
    pass_at: Mapping[str, float]
    majority: float
    num_too_long: int = 0

    def metrics(self, suffix: str = "") -> dict[str, float]:
        """As metric names: eval/accuracy{suffix}, ..."""
        return {
            f"eval/accuracy{suffix}": self.accuracy,
            f"eval/lenient{suffix}": self.lenient,
            f"eval/well_formed{suffix}": self.well_formed,
            f"eval/completion_tokens{suffix}": self.completion_tokens,
            f"eval/truncated_frac{suffix}": self.truncated_frac,
        }


def summary(scores: Scores, before: Scores | None = None) -> dict[str, float]:
    """What a stage reports of its model, and of the model it started from where there is one."""
    counts = {
        "eval/num_problems": scores.num_problems,
        "eval/num_unjudged": scores.num_unjudged,
        "eval/num_too_long": scores.num_too_long,
    }
    extra = {**{f"eval/{name}": value for name, value in scores.pass_at.items()}, "eval/maj": scores.majority}
    errors = {"eval/accuracy_se": scores.accuracy_se, "eval/lenient_se": scores.lenient_se}
    if before is None:
        return {**scores.metrics(), **errors, **counts, **extra}
    return {**before.metrics("_before"), **scores.metrics("_after"), **errors, **counts, **extra}


def pass_at_gaps(items: Sequence[Mapping[str, Any]], settings: Evaluation) -> list[str]:
    """One line for each k for which some problems have fewer than k judged samples, so that pass@k is about the others, or missing."""
    judged = Counter(item["prompt_id"] for item in items if item["accuracy"] is not None and item["lenient"] is not None)
    total = len({item["prompt_id"] for item in items})
    enough = {k: sum(count >= k for count in judged.values()) for k in settings.pass_at}
    return [
        f"evaluation: pass_at_{k} {f'is over {count} of {total} problems' if count else 'is missing'}: "
        f"{'the others have' if count else 'no problem has'} {'fewer than ' if count else ''}{k} judged samples"
        for k, count in enough.items()
        if count < total
    ]


def scores_of(items: Sequence[Mapping[str, Any]], settings: Evaluation) -> Scores:
    """Scores from items; a sample that nobody could judge is left out and counted, and a set without any judged sample is an error."""
    by_problem: dict[str, list[Mapping[str, Any]]] = {}
    for item in items:
        if item["accuracy"] is not None and item["lenient"] is not None:
            by_problem.setdefault(item["prompt_id"], []).append(item)
    if not by_problem:
        raise TrainingError(f"evaluation: none of {len(items)} samples could be judged; look at the column answer of {settings.prompts!r}")
    problems = list(by_problem.values())
    judged = [item for problem in problems for item in problem]
    accuracy, accuracy_se = mean_and_standard_error([[item["accuracy"] for item in problem] for problem in problems])
    lenient, lenient_se = mean_and_standard_error([[item["lenient"] for item in problem] for problem in problems])
    pass_at = {
        f"pass_at_{k}": _mean([pass_at_k(len(problem), sum(item["accuracy"] == 1.0 for item in problem), k) for problem in enough])
        for k in settings.pass_at
        if (enough := [problem for problem in problems if len(problem) >= k])
    }
    majority = [majority_score([item["said"] for item in problem], [item["accuracy"] for item in problem]) for problem in problems]
    return Scores(
        accuracy,
        accuracy_se,
        lenient,
        lenient_se,
        well_formed=_mean([item["well_formed"] for item in judged]),
        truncated_frac=_mean([float(item["finish"] == "length") for item in judged]),
        completion_tokens=_mean([item["completion_tokens"] for item in judged]),
        num_problems=len(problems),
        num_unjudged=len(items) - len(judged),
        pass_at=pass_at,
        majority=_mean(majority),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
