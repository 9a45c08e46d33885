"""Fresh problems of a recipe's kind: a source's rows drawn with another seed, none of them in the recipe's sources.

python scripts/write_problems.py r1_zero_smollm2 heldout --seed 77001 --rows 512 --out problems.jsonl
grpo eval runs/x/01-reason/model --against models/base --data problems.jsonl --engine hf
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from grpo.config import DataSource
from grpo.config.load import load_recipe
from grpo.data.sources import Sources


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a shipped recipe's name, or a file")
    parser.add_argument("source", help="the data source whose problems are wanted")
    parser.add_argument("--seed", type=int, required=True, help="one that the recipe does not use")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--disjoint-from",
        nargs="+",
        metavar="SOURCE",
        help="only these hold none of them (default: all but those that wait for a stage)",
    )
    arguments = parser.parse_args()
    loaded = load_recipe(arguments.recipe, check_inputs=False)
    named = loaded.recipe.data
    others = arguments.disjoint_from or [name for name, source in named.items() if source.measured_in is None]
    like = named[arguments.source].model_dump(exclude_unset=True, by_alias=True)
    fresh = DataSource.model_validate({**like, "seed": arguments.seed, "rows": arguments.rows, "disjoint_from": others})
    rows = Sources({**named, "fresh": fresh}, loaded.base, loaded.recipe.tags).load("fresh").rows
    with arguments.out.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"question": row["prompt"], "answer": row.get("answer")}) + "\n" for row in rows)
    print(f"{arguments.out}: {len(rows)} problems, none of them in {', '.join(others)}")


if __name__ == "__main__":
    main()
