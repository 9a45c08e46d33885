"""How often is the math reward right, on labelled pairs; and which gold answers of a file can it not read?

    python scripts/check_grading.py pairs.jsonl [--gold gold --answer answer --label label] [--json]
    python scripts/check_grading.py data.jsonl --gold answer [--json]
    python scripts/check_grading.py data.jsonl --gold answer --reword [--json]

The first form wants an answer and a label (1: right, 0: wrong) on each line, and counts agreement, wrong answers paid (false positives), right
answers not paid (false negatives) and abstentions, beside math-verify's: "plain", both texts in dollar signs unless they have some, and "boxed",
both in a box, as verl's wrapper gives them. The second form has no labels: each gold answer is given as its own answer, and those that don't
score 1 are listed by kind. --reword makes labelled pairs of gold answers: the same in other words and signs, and damaged ones.

Every grader runs in two processes and has 5 s for a pair. The last line with --json is one object.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rewards import RewardRuntime, RewardSpec, ScoreInput, reward
from rewards.rules.equality import form_problem, parts, warm_up
from rewards.rules.extract import answer_text

DEADLINE_S = 5.0
PROCESSES = 2
Pair = tuple[Any, str, int]
Verdicts = Sequence[float | None]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file; SystemExit with all lines that are none."""
    rows, problems = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"{type(row).__name__}, no object")
                rows.append(row)
            except ValueError as error:
                problems.append(f"{path}:{number}: not a JSON object ({error})")
    if problems or not rows:
        raise SystemExit("\n".join([*problems[:20], "write one JSON object a line"] if problems else [f"{path}: no rows"]))
    return rows


def labelled(rows: Sequence[Mapping[str, Any]], path: Path, gold: str, answer: str, label: str) -> list[Pair]:
    """The pairs of a labelled file; SystemExit with every row that lacks something."""
    problems = [
        f"{path}: row {number}: label is {row.get(label)!r}; write 1 for a right answer and 0 for a wrong one"
        for number, row in enumerate(rows, 1)
        if row.get(label) not in (0, 1) or gold not in row or answer not in row
    ]
    if problems:
        raise SystemExit("\n".join(problems[:20]))
    return [(row[gold], str(row[answer]), int(row[label])) for row in rows]


def reworded(gold: str) -> Iterator[Pair]:
    """Right and wrong answers to a gold answer, known to be so from how they were made."""
    bare = gold.strip().strip("$")
    for right in (bare, f"${bare}$", f"\\boxed{{{bare}}}", f"**{bare}**", f"The answer is ${bare}$.", f"\\({bare}\\)", f"$ {bare} $."):
        yield gold, right, 1
    numbers = list(re.finditer(r"(?<![\d_.{])\d(?![\d}])", bare)) or list(re.finditer(r"\d(?=[^\d]*$)", bare))
    for digit in numbers[-1:]:
        yield gold, f"{bare[: digit.start()]}{(int(digit[0]) + 1) % 10}{bare[digit.end() :]}", 0
    if re.fullmatch(r"[\d.,]+", bare):
        yield gold, f"{bare}a" if bare.strip("0.,") else "a", 0
        yield gold, f"-{bare}" if bare.strip("0.,") else "1", 0
        yield gold, f"x+{bare}", 0
    yield gold, f"not ${bare}$", 0
    yield gold, f"${bare}$ or $77$", 0
    yield gold, f"anything but ${bare}$", 0
    is_list = not re.search(r"[(\[{]|\\!|^[\d,]+$", bare)
    if is_list and len(found := re.split(r",\s*", bare)) > 1 and len(set(found)) == len(found):
        yield gold, ", ".join(found[1:]), 0
        yield gold, ", ".join(reversed(found)), 1


def verdicts_of(spec: RewardSpec, pairs: Sequence[Pair]) -> tuple[Verdicts, float]:
    """What a reward says to pairs, and in how many seconds; None where it abstains, fails or runs out of time."""
    inputs = [ScoreInput({"completion": f"<answer>{answer}</answer>", "answer": gold}) for gold, answer, _ in pairs]
    with RewardRuntime([spec], deadline_s=DEADLINE_S, processes=PROCESSES, base=Path(__file__).parent) as runtime:
        runtime.score([ScoreInput({"completion": "<answer>1</answer>", "answer": "1"})])
        begin = time.perf_counter()
        found = [next(iter(scored.parts.values())) for scored in runtime.score(inputs)]
        return found, time.perf_counter() - begin


@reward(prepare=warm_up)
def plain(completion: str, answer: Any) -> float | None:
    """math-verify's verdict on texts in dollar signs, unless they have some or a box."""

    def dressed(text: str) -> str:
        return text if any(sign in text for sign in ("$", "\\boxed", "\\(", "\\[")) else f"${text}$"

    return _math_verify(dressed(str(answer)), dressed(answer_text(completion) or ""))


@reward(prepare=warm_up)
def boxed(completion: str, answer: Any) -> float | None:
    """math-verify's verdict on texts in a box, unless they have one."""
    return _math_verify(*(text if "\\boxed" in text else f"\\boxed{{{text}}}" for text in (str(answer), answer_text(completion) or "")))


def _math_verify(gold: str, answer: str) -> float | None:
    """Without its timeouts, which need signals: the runtime has one."""
    from math_verify import parse, verify

    right, given = parse(gold, parsing_timeout=None), parse(answer, parsing_timeout=None)
    return float(verify(right, given, timeout_seconds=None)) if right else None


PEERS = {"math-verify, plain": "check_grading.py:plain", "math-verify, boxed": "check_grading.py:boxed"}


def tally(pairs: Sequence[Pair], verdicts: Verdicts, seconds: float) -> dict[str, float]:
    """A gold answer that can't be read pays nobody: with a right answer it counts as not paid."""
    labels = [label for _, _, label in pairs]
    paid = [verdict == 1 for verdict in verdicts]
    return {
        "agreement": sum(was == bool(label) for was, label in zip(paid, labels, strict=True)) / len(pairs),
        "wrong_paid": sum(was and not label for was, label in zip(paid, labels, strict=True)),
        "right_not_paid": sum(bool(label) and not was for was, label in zip(paid, labels, strict=True)),
        "abstained": sum(verdict is None for verdict in verdicts),
        "pairs_per_s": len(pairs) / seconds,
    }


def kind_of(gold: Any) -> str:
    """Why a gold answer can't be read."""
    found = parts(gold)
    if not found:
        return "is empty" if gold is None or not str(gold).strip() else "is longer than an answer can be"
    problem = next(filter(None, map(form_problem, found)), None)
    return re.sub(r"text of \d+ words", "text of many words", problem) if problem else "says no value"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--gold", default="gold", help="the column of gold answers")
    parser.add_argument("--answer", default="answer", help="the column of answers to judge")
    parser.add_argument("--label", default="label", help="the column that is 1 for a right answer and 0 for a wrong one")
    parser.add_argument(
        "--gold-list", choices=("all", "any"), default="all", help="where a gold answer is a list: all parts are wanted, or any"
    )
    parser.add_argument("--reword", action="store_true", help="make labelled pairs of the gold answers")
    parser.add_argument("--show", type=int, default=10, help="so many pairs or gold answers of each kind are shown")
    parser.add_argument("--alone", action="store_true", help="leave math-verify out")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    rows = read_rows(arguments.file)
    if not any(arguments.gold in row for row in rows):
        raise SystemExit(f"{arguments.file}: there is no column {arguments.gold!r}; found {sorted(rows[0])}\nname the column with --gold")
    ours = RewardSpec("math", settings={"gold_list": arguments.gold_list})
    is_labelled = any(arguments.label in row for row in rows)
    told: dict[str, Any] = {"file": arguments.file.name, "rows": len(rows), "cores": os.cpu_count()}
    if is_labelled or arguments.reword:
        if arguments.reword:
            pairs = [pair for row in rows if (gold := row.get(arguments.gold)) is not None for pair in reworded(str(gold))]
        else:
            pairs = labelled(rows, arguments.file, arguments.gold, arguments.answer, arguments.label)
        verdicts, seconds = verdicts_of(ours, pairs)
        graders = {"math": tally(pairs, verdicts, seconds)}
        for name, ref in ({} if arguments.alone else PEERS).items():
            graders[name] = tally(pairs, *verdicts_of(RewardSpec(ref), pairs))
        for name, found in graders.items():
            print(
                f"{name}: agreement {found['agreement']:.2%} of {len(pairs)}, wrong answers paid {found['wrong_paid']}, "
                f"right ones not paid {found['right_not_paid']}, abstained {found['abstained']}, {found['pairs_per_s']:,.0f} pairs/s"
            )
        wrong = [(pair, verdict) for pair, verdict in zip(pairs, verdicts, strict=True) if (verdict == 1) != bool(pair[2])]
        for (gold, answer, label), verdict in wrong[: arguments.show]:
            print(f"  {'right, not paid' if label else 'wrong, paid'} ({verdict}): gold {gold!r}, answer {answer[:200]!r}")
        told |= {"pairs": len(pairs), "graders": graders}
    else:
        golds = [row.get(arguments.gold) for row in rows]
        texts = [", ".join(parts(gold)) if arguments.gold_list == "all" else next(iter(parts(gold)), "") for gold in golds]
        verdicts, _ = verdicts_of(ours, [(gold, text, 1) for gold, text in zip(golds, texts, strict=True)])
        unread = [gold for gold, verdict in zip(golds, verdicts, strict=True) if verdict != 1]
        kinds = Counter(map(kind_of, unread))
        print(f"{len(golds) - len(unread)} of {len(golds)} gold answers can be read")
        for kind, count in kinds.most_common():
            print(f"  {count} {kind}: " + ", ".join([repr(gold)[:80] for gold in unread if kind_of(gold) == kind][: arguments.show]))
        told |= {"unreadable": len(unread), "kinds": dict(kinds)}
    if arguments.json:
        print(json.dumps(told))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
