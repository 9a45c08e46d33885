"""`grpo eval`: a recipe of one eval stage, written for the model and the file that were named."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grpo.config.load import key_value_pairs
from grpo.errors import RecipeError
from grpo.plan.models import model_problems
from grpo.run.records import read_jsonl_rows
from grpo.util.text import suggestion

SOURCE_OF_SUFFIX = {".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet"}


def compare_models(model: str, against: str, data: str, out: str | None, **settings: Any) -> dict[str, float]:
    """Scores of ``model``, and by how much it is better than ``against`` on the same problems, with the standard error of the difference."""
    from grpo.algorithm.statistics import paired_difference

    with tempfile.TemporaryDirectory(prefix="grpo-eval-") as temporary:
        folders = [Path(out or temporary) / name for name in ("model", "against")]
        scores, other = (
            evaluate_model(each, data, out=str(folder), **settings) for each, folder in zip((model, against), folders, strict=True)
        )
        of_model, of_other = map(_judged_items, folders)
    both = sorted(of_model.keys() & of_other.keys())
    if not both:
        raise RecipeError(f"no problem of {data} could be judged for both models; look at what they said: --out DIR keeps it")
    difference, error = paired_difference([of_model[problem] for problem in both], [of_other[problem] for problem in both])
    of_the_other = {"eval/accuracy_against": other["eval/accuracy"], "eval/accuracy_against_se": other["eval/accuracy_se"]}
    return {**scores, **of_the_other, "eval/difference": difference, "eval/difference_se": error, "eval/num_compared": len(both)}


def evaluate_model(
    model: str,
    data: str,
    *,
    template: str,
    samples: int,
    temperature: float,
    top_p: float,
    max_tokens: int,
    lenient: bool,
    engine: str = "vllm",
    columns: Sequence[str] = (),
    max_prompt_tokens: int | None = None,
    template_options: Sequence[str] = (),
    out: str | None = None,
) -> dict[str, float]:
    """Scores of ``model`` on the problems of ``data`` (columns question or prompt, and answer; ``columns``: "ours=theirs").

    ``template_options`` are "name=value". Raises RecipeError for what cannot work.
    """
    import yaml

    from grpo.pipeline.run import run_recipe

    file = Path(data)
    if file.suffix not in SOURCE_OF_SUFFIX:
        raise RecipeError(f"--data {data}: expected a {', '.join(SOURCE_OF_SUFFIX)} file, found {file.suffix or 'no suffix'}")
    if not file.is_file():
        near = [each.name for each in file.parent.glob("*.*") if each.suffix in SOURCE_OF_SUFFIX] if file.parent.is_dir() else []
        raise RecipeError(
            f"--data {data}: there is no such file{suggestion(file.name, near)}; it holds a problem a line, with question and answer"
        )
    if Path(model).is_dir() and (problems := model_problems(Path(model).resolve(), model)):
        raise RecipeError(problems)
    renamed, wrong = key_value_pairs(columns)
    if wrong:
        raise RecipeError("\n".join(f"--column {problem}" for problem in wrong))
    options, wrong = key_value_pairs(template_options)
    if wrong:
        raise RecipeError("\n".join(f"--template-option {problem}" for problem in wrong))
    evaluation: dict[str, Any] = {
        "prompts": "problems",
        "samples_per_prompt": samples,
        "temperature": temperature,
        "top_p": top_p,
        "max_prompt_tokens": max_prompt_tokens,
        "max_completion_tokens": max_tokens,
        "pass_at": sorted({1, samples}),
    }
    if lenient:
        evaluation |= {"accuracy": {"use": "math", "extract": "last_number"}, "well_formed": None}
    recipe = {
        "name": "eval",
        "model": str(Path(model).resolve()) if Path(model).exists() else model,
        "template": str(Path(template).resolve()) if template.endswith(".jinja") else template,
        "template_options": options,
        "data": {"problems": {SOURCE_OF_SUFFIX[file.suffix]: os.path.abspath(data), "columns": renamed}},
        "evaluation": evaluation,
        "rollout": {"engine": engine},
        "stages": [{"name": "measure", "kind": "eval"}],
    }
    with tempfile.TemporaryDirectory(prefix="grpo-eval-") as temporary:
        path = Path(temporary) / "eval.yaml"
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        try:
            summary = run_recipe(str(path), out=out or str(Path(temporary) / "run"))
        except RecipeError as error:  # what a recipe would be told to do about results of another one
            raise RecipeError([problem.removesuffix(", or make it again with --redo measure") for problem in error.problems]) from error
    return summary["stages"][0]["metrics"]


def _judged_items(run: Path) -> dict[str, list[float]]:
    """By problem, what its samples were worth; those that nobody could judge are left out."""
    judged: dict[str, list[float]] = {}
    for item in read_jsonl_rows(run / "01-measure" / "items.jsonl"):
        if item["accuracy"] is not None:
            judged.setdefault(item["prompt_id"], []).append(item["accuracy"])
    return judged
