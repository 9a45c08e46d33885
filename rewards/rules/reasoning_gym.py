"""What does the verifier of a reasoning-gym task say?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from rewards.errors import RewardError, Undecidable
from rewards.function import reward
from rewards.rules.extract import answer_text


def _load() -> None:
    import reasoning_gym  # noqa: F401


@reward(required=True, undecidable=0.0, prepare=_load, gold="answer", write=str)
def reasoning_gym(
    completion: str, answer: Any, metadata: Mapping[str, Any], question: str = "", *, answer_tag: str = "answer"
) -> float | None:
    """The score, 0 to 1, that the task's own score_answer gives to the answer block: many tasks have more right answers than one.

    Columns answer, metadata and question are those of a ``reasoning_gym:`` source; metadata names the task. Some tasks give 0.01 or more to
    any wrong answer that has the right form. No answer block: 0. An answer at which the verifier fails, where it doesn't at the gold
    answer: undecidable, 0.
    """
    verify, entry = _verifier(metadata.get("source_dataset")), {"question": question, "answer": answer, "metadata": metadata}
    given = answer_text(completion, answer_tag)
    if given is None:
        return 0.0
    try:
        return verify(answer=given, entry=entry)
    except Exception as error:
        verify(answer=answer, entry=entry)
        raise Undecidable(f"the task's verifier fails at this answer: {type(error).__name__}: {error}") from None


@cache
def _verifier(task: str | None) -> Callable[..., float]:
    from reasoning_gym.factory import DATASETS, get_score_answer_fn

    if task not in DATASETS:
        raise RewardError(
            f"column 'metadata' names the reasoning-gym task {task!r} as its source_dataset, which is not one; take rows from a data source "
            f"with reasoning_gym: ..."
        )
    return get_score_answer_fn(task)
