"""The grpo command. Arguments are read before anything heavy is imported."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from functools import wraps
from typing import Annotated, Any, Literal

import typer

from grpo import __version__

app = typer.Typer(
    name="grpo",
    help="DeepSeek-R1's recipe from one YAML file: SFT, GRPO, rejection sampling, distillation.\n\n\b\nExample: grpo run r1_tiny --out runs/first",
    epilog="Exit codes: 0 done; 1 failed; 2 bad input, nothing was loaded; 130 and 143 interrupted, 129 hung up, and the same command goes on.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

BAD_INPUT, FAILED = 2, 1
COLUMNS_OF_A_FILE = 120  # where no window says how wide it is


def _shipped_names() -> list[str]:
    """What a shell completes RECIPE to, beside files."""
    from grpo.util.shipped_recipes import shipped_recipes

    return list(shipped_recipes())


RecipeArgument = Annotated[
    str,
    typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe (grpo recipes).", autocompletion=_shipped_names),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else, errors included; progress goes to stderr.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe: stages.reason.steps=12 rollout.workers=2")
]
Out = Annotated[str | None, typer.Option("--out", metavar="DIR", help="The run's folder; runs/<name> by default.")]
Answer = dict[str, Any]


def main() -> None:
    from grpo.util.streams import open_what_is_closed

    open_what_is_closed()
    if "--json" not in sys.argv:
        app()
        return
    try:
        sys.exit(app(standalone_mode=False))
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        error.show()  # type: ignore[attr-defined]
        _print_json(_error("UsageError", [error.format_message()], error.exit_code))  # type: ignore[attr-defined]
        sys.exit(error.exit_code)  # type: ignore[attr-defined]
    finally:
        sys.stdout.flush()
        os.dup2(2, 1)  # whatever is said while the process ends


class Answered(Exception):
    """A command that has its answer, and ends with an error or an exit code all the same."""

    def __init__(self, answer: Answer, error: BaseException | None = None, code: int = FAILED):
        self.answer, self.error, self.code = answer, error, code


def _explains_errors(command: Callable[..., Answer | None]) -> Callable[..., None]:
    """Bad input ends with its problems, one a line, and exit 2; a failed run with what failed and exit 1; neither with a traceback.

    With --json, what the command returns is printed, with ``error`` beside it where it failed: always one object, and nothing else.
    """

    @wraps(command)
    def wrapped(**arguments: Any) -> None:
        as_json = bool(arguments.get("as_json"))
        answer: Answer = {}
        error: BaseException | None = None
        code = 0
        with _stdout_for_json(as_json):
            try:
                answer = command(**arguments) or {}
            except Answered as ended:
                answer, error, code = ended.answer, ended.error, ended.code
            except (Exception, KeyboardInterrupt) as raised:
                if isinstance(raised, typer.Exit):
                    raise
                error = raised
            if error is not None:
                answer = {**answer, **_explained(error, arguments.get("recipe"), as_json)}
                code = answer["error"]["exit_code"]
        if as_json:
            _print_json(answer)
        if code:
            raise typer.Exit(code) from None

    return wrapped


def _explained(error: BaseException, recipe: str | None, as_json: bool) -> Answer:
    """Say on stderr what went wrong, and return it as JSON has it. What nobody expected is raised again, or with --json shown with its traceback."""
    from grpo.errors import CheckpointError, DataError, EngineError, RecipeError, RewardError, ToolkitError
    from grpo.util.streams import complain
    from grpo.util.text import printable_lines, render_problems

    kind = type(error).__name__
    if isinstance(error, RecipeError):
        complain(render_problems(error.problems, recipe))
        return _error(kind, error.problems, BAD_INPUT)
    if isinstance(error, CheckpointError | DataError):
        complain(printable_lines(f"grpo: {error}"))
        return _error(kind, str(error).splitlines(), BAD_INPUT)
    if isinstance(error, ToolkitError | EngineError | RewardError):
        complain(printable_lines(f"grpo: {kind}: {error}"))
        return _error(kind, str(error).splitlines(), FAILED)
    if isinstance(error, KeyboardInterrupt):
        text = "interrupted; the same command goes on where it was"
        complain(f"grpo: {text}")
        return _error("Interrupted", [text], 128 + getattr(error, "signum", signal.SIGINT))
    if not as_json:
        raise error
    import traceback

    complain("".join(traceback.format_exception(error)))
    return _error(kind, str(error).splitlines() or [kind], FAILED)


def _error(kind: str, problems: list[str], code: int) -> Answer:
    return {"error": {"kind": kind, "problems": problems, "exit_code": code}}


def _folder(option: str, path: str | None) -> str | None:
    """A folder as it was given. Raises RecipeError for "", which a variable that is not set leaves, and would mean the current folder."""
    if path is None or path.strip():
        return path
    from grpo.errors import RecipeError

    raise RecipeError(f"{option} is empty; name a folder, or leave {option} out (is a variable of your script not set?)")


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
    restarts: Annotated[int, typer.Option(metavar="N", min=0, help="Begin again up to N times where the run is killed or fails.")] = 0,
    as_json: AsJson = False,
) -> Answer:
    """Run a recipe, or go on with it.

    \b
    Example: grpo run r1_tiny --out runs/first
    """
    out = _folder("--out", out)
    if restarts:
        from grpo.run.supervise import run_again_until_done

        where = ["--out", out] if out is not None else []
        again = ["--redo", redo] if redo is not None else []  # what was made again must not be made again once more
        json_ = ["--json"] if as_json else []
        code, printed = run_again_until_done(["run", recipe, *(overrides or []), *where, *json_], again, restarts, as_json)
        raise Answered(_last_answer(printed, code) if as_json else {}, code=code)
    from grpo.pipeline.run import run_recipe

    return run_recipe(recipe, overrides or [], out, redo)


def _last_answer(printed: str, code: int) -> Answer:
    """What the last start of a run printed; killed, it printed nothing."""
    with suppress(ValueError):
        return dict(json.loads(printed))
    return _error("Killed", [f"the run ended with exit code {code} and printed no result"], code)


@app.command()
@_explains_errors
def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Out = None,
    quick: Annotated[bool, typer.Option("--quick", help="Stages and rows alone, without memory, disk and time.")] = False,
    measure: Annotated[bool, typer.Option("--measure", help="Measure what this machine takes; about two minutes.")] = False,
    lengths: Annotated[
        str | None, typer.Option(metavar="P/C", help="Mean tokens of prompts and completions for times; the longest allowed by default.")
    ] = None,
    as_json: AsJson = False,
) -> Answer | None:
    """Show what a run would do, and whether it fits. Nothing is downloaded; accuracy rewards are tried on gold answers.

    \b
    Example: grpo plan r1_tiny stages.reason.steps=12
    """
    from pathlib import Path

    from grpo.data.gold_checks import try_before_the_run
    from grpo.errors import DataError, RecipeError
    from grpo.pipeline.run import checked_recipe, default_folder
    from grpo.plan import plan as whole
    from grpo.plan import render as tell
    from grpo.plan.work import lengths_from

    loaded = checked_recipe(recipe, overrides or [], deeply=not quick, needs_weights=False)
    out = _folder("--out", out)
    plan = whole.outline(loaded, Path(out) if out else default_folder(loaded))
    if not as_json:
        for section in tell.outline_sections(plan):
            _print_table(*section)
    needed = None if quick else whole.needs(plan, lengths_from(lengths), measure, try_before_the_run(loaded.recipe, loaded.base))
    answer = tell.as_json(plan, needed) if as_json else {}
    if needed is None:
        return answer
    if not as_json:
        for section in tell.needs_sections(plan, needed):
            _print_table(*section)
    if needed.problems:
        raise Answered(answer, RecipeError(list(needed.problems)))
    try:
        needed.trial.raise_problems()
    except DataError as error:
        raise Answered(answer, error) from error
    return answer


@app.command()
@_explains_errors
def report(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A run's folder, finished or not.")],
    against: Annotated[str | None, typer.Option(metavar="DIR2", help="Compare with this run.")] = None,
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="Where to write; DIR/report.html, or with --against DIR/comparison.html.")
    ] = None,
    pictures: Annotated[str | None, typer.Option(metavar="FOLDER", help="Write every chart there too, as an SVG file.")] = None,
) -> None:
    """Write a run's report anew: one HTML file that works offline.

    \b
    Example: grpo report runs/first --against runs/second
    """
    from pathlib import Path

    from grpo.report.page import report_run

    for path in report_run(
        Path(folder), Path(against) if against else None, Path(out) if out else None, Path(pictures) if pictures else None
    ):
        print(path)


@app.command()
@_explains_errors
def recipes(as_json: AsJson = False) -> Answer | None:
    """List the shipped recipes.

    \b
    Example: grpo recipes
    """
    from grpo.config.load import load_recipe
    from grpo.util.shipped_recipes import shipped_recipes

    rows = [
        {"name": name, "description": load_recipe(name, check_inputs=False).recipe.description, "path": str(path)}
        for name, path in shipped_recipes().items()
    ]
    if as_json:
        return {"recipes": rows}
    _print_table("shipped recipes", ["name", "what it does"], [[row["name"], row["description"]] for row in rows])
    return None


@app.command()
@_explains_errors
def eval(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A Hugging Face folder or hub id.")],
    data: Annotated[
        str, typer.Option(metavar="FILE", help="A .jsonl, .csv or .parquet file with columns question (or prompt) and answer.")
    ],
    column: Annotated[list[str] | None, typer.Option(metavar="OURS=THEIRS", help="Rename a column, as columns: does in a recipe.")] = None,
    template: Annotated[str, typer.Option(help="r1_zero, chat, plain or ./file.jinja")] = "r1_zero",
    samples: Annotated[int, typer.Option(help="Samples per problem.")] = 1,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.6,
    top_p: Annotated[float, typer.Option(help="Sample from the fewest tokens that hold this much probability.")] = 0.95,
    template_option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="What the chat template is told, such as enable_thinking=false.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest completion, in tokens.")] = 256,
    max_prompt_tokens: Annotated[
        int | None, typer.Option(min=1, help="Leave out longer prompts; by default what the model has room for.", show_default=False)
    ] = None,
    lenient: Annotated[bool, typer.Option(help="Count an answer whatever its form.")] = False,
    engine: Annotated[Literal["vllm", "hf"], typer.Option(help="What draws the samples: vllm, or transformers.")] = "vllm",
    against: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Another model on the same problems: how much better is the first?")
    ] = None,
    out: Annotated[str | None, typer.Option(metavar="DIR", help="Keep per-item results here.")] = None,
    as_json: AsJson = False,
) -> Answer | None:
    """Measure a model: avg@n with standard error, pass@k, maj@k.

    \b
    Example: grpo eval runs/r1-tiny/05-final/model --data sums.jsonl --json
    """
    from grpo.commands.evaluate import compare_models, evaluate_model

    settings: dict[str, Any] = dict(
        template=template, samples=samples, temperature=temperature, top_p=top_p, max_tokens=max_tokens, lenient=lenient
    )
    settings |= dict(engine=engine, columns=column or [], out=_folder("--out", out))
    settings |= dict(max_prompt_tokens=max_prompt_tokens, template_options=template_option or [])
    metrics = evaluate_model(model, data, **settings) if against is None else compare_models(model, against, data, **settings)
    if as_json:
        return dict(metrics)
    _print_table(
        f"{model} on {data}",
        ["measure", "value"],
        [[name.removeprefix("eval/"), "unknown" if value is None else f"{value:.4g}"] for name, value in metrics.items()],
    )
    return None


rewards_app = typer.Typer(
    help="List rewards, and try one on a file's rows.\n\n\b\nExample: grpo reward test math --data sums.jsonl",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(rewards_app, name="reward")


@rewards_app.command("list")
@_explains_errors
def reward_list(as_json: AsJson = False) -> Answer | None:
    """List the shipped and the installed rewards, with their columns (? where optional) and settings.

    \b
    Example: grpo reward list
    """
    from grpo.commands.reward import list_rewards

    rewards = list_rewards()
    if as_json:
        return {"rewards": rewards}
    for r in rewards:
        shown = {
            key: {"": "''", None: "null"}.get(value, value) if isinstance(value, str | None) else value
            for key, value in r["settings"].items()
        }
        settings = ", ".join(f"{key}: {value}" for key, value in shown.items()) or "none"
        print(f"{r['name']} ({r['from']})\n  {r['about']}\n  columns: {', '.join(r['columns'])}\n  settings: {settings}")
    return None


@rewards_app.command("test")
@_explains_errors
def reward_test(
    ref: Annotated[str, typer.Argument(metavar="REF", help="A reward, as a recipe names it: math, ./mine.py:brief, package.module:name")],
    data: Annotated[str, typer.Option(metavar="FILE", help="A .jsonl, .csv or .parquet file with the columns that the reward asks for.")],
    settings: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="The reward's settings: limit=30")] = None,
    completions: Annotated[
        str | None, typer.Option(metavar="FILE", help="A .jsonl file: completion (or text), and row (from 0) or prompt.")
    ] = None,
    column: Annotated[list[str] | None, typer.Option(metavar="OURS=THEIRS", help="Rename a column, as columns: does in a recipe.")] = None,
    answer: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Where the right answers stand; by default as the reward asks.")
    ] = None,
    canary: Annotated[str | None, typer.Option(metavar="TEXT", help="A right completion around {answer}; as canary: in a recipe.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows to try, spread over the file.")] = 100,
    deadline: Annotated[float, typer.Option(min=0.01, help="Seconds for one sample; as reward_deadline_s: in a recipe.")] = 5.0,
    any_scale: Annotated[bool, typer.Option(help="Right answers need only score higher than wrong ones, in some row.")] = False,
    as_json: AsJson = False,
) -> Answer:
    """Score right answers, wrong ones and completions as training would.

    \b
    Example: grpo reward test math --data sums.jsonl
    """
    from grpo.commands.reward import table_of, totals_of, try_reward
    from grpo.util.text import printable_lines

    tried = try_reward(ref, data, completions, settings or [], column or [], answer, canary, rows, deadline, is_strict=not any_scale)
    found: Answer = {}
    if as_json:
        found = tried.as_json()
    else:
        table = table_of(tried)
        left_out = f" ({len(table)} of {len(tried.attempts)} shown; --json has all)" if len(table) < len(tried.attempts) else ""
        _print_table(f"{ref} on {data}{left_out}", ["row", "what", "scored", "score", "note", "ms"], table)
        print(printable_lines("\n".join([*totals_of(tried), *([tried.first_error] if tried.first_error else []), *tried.problems])))
    if tried.problems:
        raise Answered(found)
    return found


@app.command()
@_explains_errors
def export(
    model: Annotated[str, typer.Argument(metavar="RUN_OR_MODEL", help="A folder: of a run, of a stage, of a model or of an adapter.")],
    to: Annotated[str, typer.Option("--to", metavar="DIR", help="A folder that is not there yet.")],
    stage: Annotated[str | None, typer.Option(metavar="NAME", help="Which stage's model; the run's last by default.")] = None,
    as_json: AsJson = False,
) -> Answer | None:
    """Copy a model out of a run, with a card of its lineage. Adapters are folded in.

    \b
    Example: grpo export runs/r1-tiny --to my-model
    """
    from grpo.commands.export import export_model

    _folder("--to", to)
    exported = export_model(model, to, stage)
    if as_json:
        return {"path": str(exported.path), "source": str(exported.source), "how": exported.how, "bytes": exported.num_bytes}
    print(
        f"{exported.source} {exported.how} to {exported.path} ({exported.num_bytes / 2**20:.1f} MiB); its card is {exported.path}/README.md"
    )
    return None


@app.command()
@_explains_errors
def doctor(
    quick: Annotated[bool, typer.Option("--quick", help="Start neither Ray nor an engine: seconds instead of a minute.")] = False,
    as_json: AsJson = False,
) -> Answer:
    """Would a run work on this machine? Exit 0: a run on its CPU would.

    \b
    Example: grpo doctor --quick
    """
    from dataclasses import asdict

    from grpo.commands.doctor import examine

    reports = []
    for report in examine(quick):
        reports.append(report)
        if not as_json:
            state = typer.style(f"{report.state:5}", fg={"ok": "green", "note": "yellow", "fail": "red"}[report.state])
            typer.echo(f"{state} {report.check:9} {report.found}" + (f"\n{'':15} -> {report.do}" if report.do else ""))
    works = all(report.state != "fail" for report in reports)
    answer = {"ok": works, "checks": [asdict(report) for report in reports]} if as_json else {}
    if not works:
        raise Answered(answer)
    return answer


@app.command()
@_explains_errors
def schema() -> None:
    """Print the JSON schema of recipes, for editors.

    \b
    Example: grpo schema > recipe.schema.json
    """
    from grpo.config.key_reference import recipe_json_schema

    print(json.dumps(recipe_json_schema(), indent=2))


@contextmanager
def _stdout_for_json(wanted: bool) -> Iterator[None]:
    """What a command, its libraries and the processes that it starts print on the way goes to stderr, so that stdout holds its one object."""
    if not wanted:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _print_json(value: Any) -> None:
    from grpo.run.records import without_nan

    print(json.dumps(without_nan(value), ensure_ascii=False))


def _print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from grpo.util.text import printable_lines

    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, show_header=any(header), header_style="dim"
    )
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable_lines(cell)) for cell in row))
    is_open = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = Console(width=None if is_open else COLUMNS_OF_A_FILE)
    console.print(table)
    console.print()


if __name__ == "__main__":
    main()
