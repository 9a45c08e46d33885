"""The grpo command. Arguments are read before anything heavy is imported."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from grpo import __version__

app = typer.Typer(
    name="grpo",
    help="DeepSeek-R1's recipe from one YAML file: SFT, GRPO, rejection sampling, distillation.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130
RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe (grpo recipes).")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe: stages.reason.steps=12 rollout.workers=2")
]
Out = Annotated[str | None, typer.Option("--out", metavar="DIR", help="The run's folder; runs/<name> by default.")]


def main() -> None:
    app()


def _explains_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Bad input ends with its problems, one a line, and exit 2; a failed run with what failed and exit 1; neither with a traceback."""

    @wraps(command)
    def wrapped(**arguments: Any) -> None:
        from grpo.errors import CheckpointError, DataError, EngineError, RecipeError, RewardError, ToolkitError
        from grpo.problems import render_problems

        try:
            command(**arguments)
        except RecipeError as error:
            print(render_problems(error.problems, arguments.get("recipe")), file=sys.stderr)
            raise typer.Exit(BAD_INPUT) from None
        except (CheckpointError, DataError) as error:
            print(f"grpo: {error}", file=sys.stderr)
            raise typer.Exit(BAD_INPUT) from None
        except (ToolkitError, EngineError, RewardError) as error:
            print(f"grpo: {type(error).__name__}: {error}", file=sys.stderr)
            raise typer.Exit(FAILED) from None
        except KeyboardInterrupt:
            print("grpo: interrupted; the same command goes on after the last finished stage", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None

    return wrapped


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        print(f"grpo-toolkit {__version__}")
        raise typer.Exit


@app.command()
@_explains_errors
def run(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Out = None,
    redo: Annotated[str | None, typer.Option(metavar="STAGE", help="Make this stage again, and all after it.")] = None,
) -> None:
    """Run a recipe, or go on with it. Example: grpo run r1_tiny --out runs/first"""
    from grpo.recipe import run_recipe

    run_recipe(recipe, overrides or [], out, redo)


@app.command()
@_explains_errors
def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Out = None,
    quick: Annotated[bool, typer.Option("--quick", help="Stages and rows alone, without memory, disk and time.")] = False,
    measure: Annotated[bool, typer.Option("--measure", help="Measure this machine's rates for times; about a minute.")] = False,
    lengths: Annotated[
        str | None, typer.Option(metavar="P/C", help="Mean tokens of prompts and completions for times; the longest allowed by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what a run would do and need, and whether it fits; downloads nothing. Example: grpo plan r1_tiny stages.reason.steps=12"""
    from pathlib import Path

    from grpo.errors import RecipeError
    from grpo.plan import tell, whole
    from grpo.plan.work import lengths_from
    from grpo.recipe import checked_recipe, default_folder

    loaded = checked_recipe(recipe, overrides or [])
    plan = whole.outline(loaded, Path(out) if out else default_folder(loaded))
    if not as_json:
        for section in tell.outline_sections(plan):
            _print_table(*section)
    needed = None if quick else whole.needs(plan, lengths_from(lengths), measure)
    if as_json:
        print(json.dumps(tell.as_json(plan, needed)))
    elif needed is not None:
        for section in tell.needs_sections(plan, needed):
            _print_table(*section)
    if needed is not None and needed.problems:
        raise RecipeError(list(needed.problems))


@app.command()
@_explains_errors
def recipes(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """List the shipped recipes. Example: grpo recipes"""
    from grpo.loading import load_recipe, shipped_recipes

    rows = [
        {"name": name, "description": load_recipe(name).recipe.description, "path": str(path)} for name, path in shipped_recipes().items()
    ]
    if as_json:
        print(json.dumps({"recipes": rows}))
        return
    _print_table("shipped recipes", ["name", "what it does"], [[row["name"], row["description"]] for row in rows])


@app.command()
@_explains_errors
def eval(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A Hugging Face folder or hub id.")],
    data: Annotated[
        str, typer.Option(metavar="FILE", help="A .jsonl, .csv or .parquet file with columns question (or prompt) and answer.")
    ],
    template: Annotated[str, typer.Option(help="r1_zero, chat, plain or ./file.jinja")] = "r1_zero",
    samples: Annotated[int, typer.Option(help="Samples per problem.")] = 1,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.6,
    top_p: Annotated[float, typer.Option()] = 0.95,
    max_tokens: Annotated[int, typer.Option(help="Longest completion, in tokens.")] = 256,
    lenient: Annotated[bool, typer.Option(help="Count an answer whatever its form.")] = False,
    out: Annotated[str | None, typer.Option(metavar="DIR", help="Keep per-item results here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure a model: avg@n with standard error, pass@k, maj@k. Example: grpo eval runs/r1-tiny/05-final/model --data sums.jsonl --json"""
    from grpo.evaluate import evaluate_model

    metrics = evaluate_model(model, data, template, samples, temperature, top_p, max_tokens, lenient, out)
    if as_json:
        print(json.dumps(metrics))
        return
    _print_table(
        f"{model} on {data}",
        ["measure", "value"],
        [[name.removeprefix("eval/"), "unknown" if value is None else f"{value:.4g}"] for name, value in metrics.items()],
    )


def _print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


if __name__ == "__main__":
    main()
