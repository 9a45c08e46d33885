"""Print one group of a finished or running RL stage: its completions, rewards and advantages.

python examples/04_looking_into_a_group.py runs/r1-tiny/02-reason [--step 1] [--group 0]
"""

from __future__ import annotations

import argparse
import json
from itertools import groupby
from pathlib import Path


def groups_of_step(samples: Path, step: int) -> list[list[dict]]:
    """The groups of a step, in the order in which they were sampled; the rows of a group are consecutive in samples.jsonl."""
    with samples.open(encoding="utf-8") as lines:
        rows = [row for row in map(json.loads, lines) if row["step"] == step]
    return [list(group) for _, group in groupby(rows, key=lambda row: row["prompt_id"])]


def show(group: list[dict]) -> None:
    print(f"prompt {group[0]['prompt_id']}: {group[0]['prompt']}   (answer {group[0]['answer']})")
    for row in sorted(group, key=lambda row: -row["advantage"]):
        parts = "  ".join(f"{name} {'-' if value is None else format(value, '.2f')}" for name, value in row["parts"].items())
        print(f"  advantage {row['advantage']:+.2f}   {parts}   {row['completion_tokens']:3d} tokens   {row['text']!r}")
    total = sum(row["advantage"] for row in group)
    print(f"  the advantages of a group sum to {total:+.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", type=Path, help="the folder of an rl stage")
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--group", type=int, default=0)
    arguments = parser.parse_args()
    groups = groups_of_step(arguments.stage / "samples.jsonl", arguments.step)
    if not 0 <= arguments.group < len(groups):
        parser.error(f"step {arguments.step} has {len(groups)} groups; --group {arguments.group} is not one of them")
    show(groups[arguments.group])


if __name__ == "__main__":
    main()
