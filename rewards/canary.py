"""Can the accuracy reward be trusted? Gold answers must score 1 and wrong ones 0, on the same path that training takes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rewards.equality import plain_number, same_number
from rewards.runtime import RewardRuntime, ScoreInput

RESERVED_VALUES = {"prompt": "", "prompt_id": "canary", "prefill": "", "finish": "stop", "tokens": (), "num_tokens": 0}


def canary_problems(
    runtime: RewardRuntime,
    rows: Sequence[Mapping[str, Any]],
    render: Callable[[str], str],
    *,
    name: str | None = None,
    num_rows: int | None = 8,
    column: str = "answer",
) -> list[str]:
    """One line for each row whose own gold answer does not score 1, or for which another row's, unequal one does not score 0.

    render     a well-formed completion around an answer
    name       the accuracy reward; by default the first required one that asks for ``column`` (with none, there is nothing to check)
               Rewards that have a process to themselves are left out: a judge's opinion is no exact match, and costs
    num_rows   rows to check, spread over all; None checks every row, which finds each gold answer that can't be read
    """
    light = {name: fn for name, fn in runtime.rewards.items() if not fn.options.alone}
    name = name or next((name for name, fn in light.items() if name in runtime.required and fn.knows(column)), None)
    if name not in light or not rows:
        return []
    step = 1 if num_rows is None else max(1, len(rows) // num_rows)
    chosen = list(range(0, len(rows), step))[:num_rows]
    cases = []
    for index in chosen:
        gold = str(rows[index].get(column))
        others = sorted({str(rows[other].get(column)) for other in chosen})
        unequal = [other for other in others if other.strip() != gold.strip() and not same_number(plain_number(gold), plain_number(other))]
        cases.append((index, gold, True))
        cases += [(index, other, False) for other in unequal[:2]]
    inputs = [ScoreInput({**RESERVED_VALUES, **rows[index], "completion": render(answer)}) for index, answer, _ in cases]
    scored = runtime.score(inputs, {each: runtime.specs[each].weight for each in light})
    problems, wrong = [], defaultdict(list)
    for (index, answer, is_gold), result in zip(cases, scored, strict=True):
        part, note = result.parts[name], result.notes.get(name)
        if not is_gold:
            wrong[index].append((answer, part))
        elif part != 1:
            said = f"{part} ({note})" if note else part
            problems.append(f"row {index}: its own gold answer {answer!r} scores {said} by {name!r}, not 1; row: {_shown(rows[index])}")
    for index, tried in wrong.items():  # two of them, because golds may be equal in ways that only the reward knows
        if all(part == 1 for _, part in tried):
            problems.append(f"row {index}: the wrong answer {tried[0][0]!r} scores 1 by {name!r}, not 0; row: {_shown(rows[index])}")
    return problems


def _shown(row: Mapping[str, Any]) -> str:
    text = repr(dict(row))
    return text if len(text) <= 300 else text[:297] + "..."
