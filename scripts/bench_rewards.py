"""How many scores a second does a reward give through RewardRuntime, on the processes that a step has?

    python scripts/bench_rewards.py [--prompts 128] [--samples 16] [--processes 2] [--rounds 5] [--json]
    python scripts/bench_rewards.py --code [--prompts 8] [--samples 8] [--json]

Three kinds of steps for math. plain: gold answers are numbers, which are compared exactly. formulas: they are fractions, roots, polynomials and
sets, for math-verify. mixed: every fourth prompt has a formula. The samples of a prompt give four different answers, one of them right; no
number comes twice, so nothing is known from the step before. --code: a function and three assert statements, in two sandboxes a sample.

The processes are warm; a rate is that of the median round. The last line with --json is one object; its scores_per_s is that of mixed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence

from rewards import RewardRuntime, RewardSpec, ScoreInput

FOR_MATH_VERIFY = [
    (r"\frac{{{n}}}{{7}}", r"\dfrac{{{n}}}{{7}}"),
    (r"{n}\sqrt{{3}}", "sqrt({n}^2*3)"),
    ("(x+{n})^2", "x^2+2*{n}*x+{n}^2"),
    (r"\{{1, {n}\}}", r"\{{{n}, 1\}}"),
]
PROGRAM = "def add(a, b):\n    return a + b"


def math_step(prompts: int, samples: int, formula_every: int, first: int) -> list[ScoreInput]:
    """``formula_every`` n: every n-th prompt has a formula, the others a number; 0: none has."""
    inputs = []
    for number in range(first, first + prompts):
        is_formula = formula_every and number % formula_every == 0
        gold, given = FOR_MATH_VERIFY[number // formula_every % len(FOR_MATH_VERIFY)] if is_formula else ("{n}", "{n}.0")
        for sample in range(samples):
            completion = f"<think>{sample}</think><answer>{given.format(n=number + sample % 4)}</answer>"
            inputs.append(ScoreInput({"completion": completion, "answer": gold.format(n=number)}))
    return inputs


def code_step(prompts: int, samples: int, first: int) -> list[ScoreInput]:
    completion = f"<answer>```python\n{PROGRAM}\n```</answer>"
    return [
        ScoreInput({"completion": completion, "tests": [f"assert add({n}, {k}) == {n + k}" for k in range(3)]})
        for n in range(first, first + prompts)
        for _ in range(samples)
    ]


def rate(reward: str, steps: Sequence[Sequence[ScoreInput]], processes: int, right_frac: float) -> float:
    """Scores a second, of the median step; the first step warms up. Asserts that all is scored, and as it should be."""
    seconds = []
    with RewardRuntime([RewardSpec(reward)], processes=processes) as runtime:
        for inputs in steps:
            start = time.perf_counter()
            rewards = [scored.reward for scored in runtime.score(inputs)]
            seconds.append(time.perf_counter() - start)
            assert None not in rewards and sum(filter(None, rewards)) == right_frac * len(inputs)
    return len(steps[0]) / statistics.median(seconds[1:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--code", action="store_true")
    parser.add_argument("--prompts", type=int)
    parser.add_argument("--samples", type=int, help="of each prompt; a multiple of 4")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    prompts, samples = arguments.prompts or (8 if arguments.code else 128), arguments.samples or (8 if arguments.code else 16)
    firsts = [7 + round_ * (prompts + 4) for round_ in range(arguments.rounds + 1)]
    if arguments.code:
        rates = {"code": rate("code", [code_step(prompts, samples, first) for first in firsts], arguments.processes, 1.0)}
    else:
        kinds = {"plain": 0, "formulas": 1, "mixed": 4}
        steps = {kind: [math_step(prompts, samples, every, first) for first in firsts] for kind, every in kinds.items()}
        rates = {kind: rate("math", steps[kind], arguments.processes, 0.25) for kind in kinds}
    print("; ".join(f"{kind}: {found:,.0f} scores/s" for kind, found in rates.items()), f"in {arguments.processes} processes")
    if arguments.json:
        told = {"prompts": prompts, "samples": samples, "processes": arguments.processes, "cores": os.cpu_count(), "rates": rates}
        print(json.dumps(told | {"scores_per_s": rates.get("mixed", rates.get("code"))}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
