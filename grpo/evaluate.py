"""`grpo eval`: a recipe of one eval stage, written for the model and the file that were named."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from grpo.errors import RecipeError

SOURCE_OF_SUFFIX = {".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet"}


def evaluate_model(
    model: str, data: str, template: str, samples: int, temperature: float, top_p: float, max_tokens: int, lenient: bool, out: str | None
) -> dict[str, float]:
    """Scores of ``model`` on the problems of ``data`` (columns question or prompt, and answer). Raises RecipeError for what cannot work."""
    import yaml

    from grpo.recipe import run_recipe

    file = Path(data)
    if file.suffix not in SOURCE_OF_SUFFIX:
        raise RecipeError(f"--data {data}: expected a {', '.join(SOURCE_OF_SUFFIX)} file, found {file.suffix or 'no suffix'}")
    evaluation: dict[str, Any] = {
        "prompts": "problems",
        "samples_per_prompt": samples,
        "temperature": temperature,
        "top_p": top_p,
        "max_completion_tokens": max_tokens,
        "pass_at": sorted({1, samples}),
    }
    if lenient:
        evaluation |= {"accuracy": {"use": "math", "extract": "last_number"}, "well_formed": None}
    recipe = {
        "name": "eval",
        "model": str(Path(model).resolve()) if Path(model).exists() else model,
        "template": str(Path(template).resolve()) if template.endswith(".jinja") else template,
        "data": {"problems": {SOURCE_OF_SUFFIX[file.suffix]: os.path.abspath(data)}},
        "evaluation": evaluation,
        "stages": [{"name": "measure", "kind": "eval"}],
    }
    with tempfile.TemporaryDirectory(prefix="grpo-eval-") as temporary:
        path = Path(temporary) / "eval.yaml"
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        summary = run_recipe(str(path), out=out or str(Path(temporary) / "run"))
    return summary["stages"][0]["metrics"]
