"""Is the answer right, as mathematics?"""

from __future__ import annotations

from typing import Any, Literal

from rewards.errors import Undecidable
from rewards.function import Noted, reward
from rewards.processes import Processes
from rewards.rules import equality, extract

DEADLINE_S = 5.0
Extract = Literal["answer_tag", "boxed", "last_number", "auto"]
AFTER_THINKING = ("boxed", "auto")
"""Where a box in the thinking would count else, although a model tries out several there."""

_judges = Processes(1, prepare=equality.warm_up)
"""For calls outside of a RewardRuntime, whose processes judge in place. Starts with the first answer that is not a plain number."""


def find_answer(
    completion: str,
    how: Extract = "answer_tag",
    answer_tag: str = "answer",
    *,
    after_thinking: bool | None = False,
    think_tag: str = "think",
    prefill: str = "",
) -> str | None:
    """The answer as it stands in a completion, or None: see the settings of the reward."""
    text: str | None = completion
    if after_thinking or (after_thinking is None and how in AFTER_THINKING):
        text = extract.final_text(completion, prefill, think_tag)
    if text is None:
        return None
    if how == "last_number":
        return extract.last_number(text)
    inside = text if how == "boxed" else extract.answer_text(text, answer_tag)
    if how == "auto" and inside is None:
        return extract.boxed_text(text) or extract.last_number(text)
    return inside and (extract.boxed_text(inside) or (inside if how != "boxed" else None))


def said(completion: str, prefill: str = "", **settings: Any) -> str | None:
    """What the reward reads as a completion's answer."""
    where = {name: settings[name] for name in ("answer_tag", "after_thinking", "think_tag") if name in settings}
    return find_answer(completion, settings.get("extract", "answer_tag"), prefill=prefill, **where)


@reward(required=True, undecidable=0.0, prepare=equality.warm_up, gold="answer", check_gold=equality.form_problem, said=said)
def math(
    completion: str,
    answer: Any,
    prefill: str = "",
    *,
    extract: Extract = "answer_tag",
    answer_tag: str = "answer",
    think_tag: str = "think",
    after_thinking: bool | None = None,
    gold_list: Literal["all", "any"] = "all",
) -> float | Noted | None:
    r"""1 if the answer has the value of the gold answer in column ``answer``, else 0: the accuracy reward of R1 (arXiv:2501.12948).

    extract          where the answer stands: "answer_tag" (in the last answer block, and there in \boxed{...} if there is one), "boxed" (in
                     the last box), "last_number" (lenient: the last number of all), "auto" (the first of these three that there is)
    after_thinking   whether it is looked for after the thinking only, so that an unclosed think block leaves none; by default with "boxed"
                     and "auto"
    gold_list        where a gold answer is a list: "all" wants every part, in any order, "any" one of them

    No answer there: 0. An answer that can't be read, or not within the deadline: undecidable, which is 0 and counted. A gold answer that
    can't be read: None. Plain numbers are compared at once, everything else in a process that can be killed.
    """
    golds = equality.parts(answer)
    given = find_answer(completion, extract, answer_tag, after_thinking=after_thinking, think_tag=think_tag, prefill=prefill)
    if not golds:
        return None
    if len(golds) == 1:
        numbers = equality.plain_number(golds[0]), equality.plain_number(given or "")
        if numbers[0] is not None and (numbers[1] is not None or not given):
            return float(equality.same_number(*numbers))
    try:
        verdict = _judges.call(equality.judge_list, golds, given or "", gold_list, deadline_s=DEADLINE_S)
    except TimeoutError:
        raise Undecidable(f"no verdict within {DEADLINE_S:g} s") from None
    except OSError:
        return None
    if verdict == "undecidable":
        raise Undecidable("the answer can't be read or evaluated")
    if verdict == "unreadable gold":
        damage = next(filter(None, map(equality.damage, golds)), None)
        return None if damage is None else Noted(None, f"the gold answer {damage}")
    return float(verdict == "same")
