"""How many scores a second does a reward give through RewardRuntime, on the processes that a step has?

    python scripts/bench_rewards.py [--reward math] [--samples 4000] [--processes 2] [--rounds 5] [--json]

math: half of the answers are plain numbers, which are compared at once, and half are for math-verify (roots, fractions, polynomials, sets);
about half are right. code: a function and three assert statements, in two sandboxes a sample. The processes are warm; the rate is that of the
median round. The last line with --json is one object.
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


def math_inputs(num_samples: int) -> list[ScoreInput]:
    """Gold answers differ from sample to sample, as they do from prompt to prompt; every other completion is off by one."""
    inputs = []
    for index in range(num_samples):
        gold, given = ("{n}", "{n}.0") if index % 2 else FOR_MATH_VERIFY[index // 2 % len(FOR_MATH_VERIFY)]
        number, is_wrong = index % 997 + 2, index // 2 % 2
        answer = given.format(n=number + is_wrong)
        inputs.append(ScoreInput({"completion": f"<think>{index}</think><answer>{answer}</answer>", "answer": gold.format(n=number)}))
    return inputs


def code_inputs(num_samples: int) -> list[ScoreInput]:
    return [
        ScoreInput({"completion": f"<answer>```python\n{PROGRAM}\n```</answer>", "tests": [f"assert add({n}, {k}) == {n + k}" for k in range(3)]})
        for n in range(num_samples)
    ]


def scores_per_s(reward: str, inputs: Sequence[ScoreInput], processes: int, rounds: int) -> dict[str, float]:
    """The rate of the median round, and the mean score, which says what was compared."""
    seconds, mean = [], 0.0
    with RewardRuntime([RewardSpec(reward)], processes=processes) as runtime:
        runtime.score(inputs[: 64 * processes])
        for _ in range(rounds):
            start = time.perf_counter()
            scored = runtime.score(inputs)
            seconds.append(time.perf_counter() - start)
            mean = statistics.fmean(one.reward for one in scored if one.reward is not None)
            assert all(one.reward is not None for one in scored), "every sample has a score"
    return {"scores_per_s": len(inputs) / statistics.median(seconds), "mean_score": mean}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reward", choices=["math", "code"], default="math")
    parser.add_argument("--samples", type=int, help="4000 for math, 64 for code")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    make, default = {"math": (math_inputs, 4000), "code": (code_inputs, 64)}[arguments.reward]
    inputs = make(arguments.samples or default)
    found = scores_per_s(arguments.reward, inputs, arguments.processes, arguments.rounds)
    print(f"{arguments.reward}: {found['scores_per_s']:,.0f} scores/s in {arguments.processes} processes, {os.cpu_count()} cores")
    if arguments.json:
        told = {"reward": arguments.reward, "samples": len(inputs), "processes": arguments.processes, "cores": os.cpu_count()}
        print(json.dumps(told | found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
