"""Is the answer right, as mathematics?"""

from __future__ import annotations

from typing import Any, Literal

from rewards import equality, extract
from rewards.errors import Undecidable
from rewards.function import reward
from rewards.processes import Processes

DEADLINE_S = 5.0
Extract = Literal["answer_tag", "boxed", "last_number", "auto"]

_judges = Processes(1, prepare=equality.warm_up)
"""For calls outside of a RewardRuntime, whose processes judge in place. Starts with the first answer that is not a plain number."""


@reward(required=True, undecidable=0.0, prepare=equality.warm_up, gold="answer", check_gold=equality.form_problem)
def math(completion: str, answer: Any, *, extract: Extract = "answer_tag", answer_tag: str = "answer") -> float | None:
    r"""1 if the answer has the value of the gold answer in column ``answer``, else 0: the accuracy reward of R1 (arXiv:2501.12948).

    extract   where the answer stands: "answer_tag" (in the last answer block, and there in \boxed{...} if there is one), "boxed" (in the
              last box), "last_number" (lenient: the last number of all), "auto" (the first of these three that there is)

    No answer there: 0. An answer that can't be read, or not within the deadline: undecidable, which is 0 and counted. A gold answer that
    can't be read: None. Plain numbers are compared exactly, everything else by math-verify, in a process that can be killed.
    """
    gold, given = equality.readable(answer), find_answer(completion, extract, answer_tag)
    if not gold:
        return None
    numbers = equality.plain_number(gold), equality.plain_number(given or "")
    if numbers[0] is not None and (numbers[1] is not None or not given):
        return float(equality.same_number(*numbers))
    try:
        verdict = _judges.call(equality.judge, gold, given or "", deadline_s=DEADLINE_S)
    except TimeoutError:
        raise Undecidable(f"no verdict within {DEADLINE_S:g} s") from None
    except OSError:
        return None
    if verdict == "undecidable":
        raise Undecidable("the answer can't be read or evaluated")
    return None if verdict == "unreadable gold" else float(verdict == "same")


def find_answer(completion: str, how: Extract, answer_tag: str = "answer") -> str | None:
    """The answer as it stands in a completion, or None: see ``extract`` of the reward."""
    if how == "last_number":
        return extract.last_number(completion)
    inside = completion if how == "boxed" else extract.answer_text(completion, answer_tag)
    if how == "auto" and inside is None:
        return extract.boxed_text(completion) or extract.last_number(completion)
    return inside and (extract.boxed_text(inside) or (inside if how != "boxed" else None))
