"""Checks that everything outside the recipe that it refers to exists: files, tasks, functions, columns, rewards, models."""

from __future__ import annotations

import ast
import csv
import json
import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from string import Formatter
from typing import Any

from grpo import config
from grpo.config import (
    SOURCE_COLUMN,
    DataSource,
    Evaluation,
    MadeModel,
    Mixture,
    PretrainedModel,
    Recipe,
    RewardUse,
    imitated_sources,
    source_names,
)
from grpo.config.check_templates import template_findings
from grpo.config.problems import Finding, Keys, no_file, shown_path
from grpo.util.text import listed, suggestion

Columns = dict[str, frozenset[str] | None]  # by source; None if they are only known after loading
TRACKERS = {"tensorboard": ("tensorboardX", "tensorboard"), "wandb": ("wandb",), "mlflow": ("mlflow",), "trackio": ("trackio",)}
OUR_REWARD_KEYS = ("weight", "required", "name", "on_error", "max_error_frac")
FETCHED_BY = {"smollm2-135m-instruct": "python scripts/fetch_smollm2.py"}  # models of shipped recipes that have no Hub id
PEEK_ROWS, PEEK_BYTES = 50, 1 << 20


def input_findings(recipe: Recipe, base: Path) -> Iterator[Finding]:
    """Yield everything that is missing. ``base`` is the folder that relative paths refer to."""
    yield from template_findings(recipe, base)
    if recipe.rollout.script:
        yield from _python_name(recipe.rollout.script, base, ("rollout", "script"))
    if recipe.rollout.transport == "nixl" and not find_spec("nixl"):
        yield Finding(
            ("rollout", "transport"), "nixl is not installed; run pip install nixl, or delete transport, and weights go through host memory"
        )
    for number, tracker in enumerate(recipe.trackers):
        yield from _tracker(tracker, base, ("trackers", number))
    columns: Columns = {}
    taught = imitated_sources(recipe)
    for name, source in recipe.data.items():
        columns[name], findings = source_columns(name, source, base, name in taught)
        yield from findings
    yield from _model(recipe.model, columns, base, ("model",))
    for index, stage in enumerate(recipe.stages):
        at: Keys = ("stages", index)
        if isinstance(stage, config.RlStage):
            yield from _algorithm(stage.algorithm, base, (*at, "algorithm"))
            yield from _curriculum(stage.curriculum, stage.prompts, columns, (*at, "curriculum", "by"))
        if isinstance(stage, config.SftStage | config.DistillStage):
            curriculum = stage.curriculum
            if curriculum is not None and any(phase.mix is not None for phase in curriculum.phases):
                sources = stage.data or getattr(stage, "prompts", None)
                yield from _curriculum(curriculum, sources, columns, (*at, "curriculum", "by"))
            yield from _completions(stage.data, columns, (*at, "data"))
        if isinstance(stage, config.RejectStage):
            for number, mix in enumerate(stage.mix):
                yield from _completions(mix.use, columns, (*at, "mix", number, "use"))
        if isinstance(stage, config.RlStage | config.RejectStage | config.DistillStage):
            for number, use in enumerate(stage.rewards):
                yield from _reward(use, stage.prompts, columns, base, (*at, "rewards", number))
        if isinstance(stage, config.DistillStage) and not isinstance(stage.from_, str):
            yield from _model(stage.from_, columns, base, (*at, "from"))
        if isinstance(stage, config.EvalStage) and stage.evaluation:
            yield from _evaluation(stage.evaluation, columns, base, (*at, "evaluation"))
    if recipe.evaluation:
        yield from _evaluation(recipe.evaluation, columns, base, ("evaluation",))
    yield from _unread_golds(recipe, base)


# --- Data -----------------------------------------------------------------------------------------


def _unread_golds(recipe: Recipe, base: Path) -> Iterator[Finding]:
    """Check that a source filtered by unreadable_gold has a reward that reads its reference answers."""
    for name, source in recipe.data.items():
        if source.filters.unreadable_gold is not None and not reading_uses(recipe, name, base):
            text = f"no required reward that reads reference answers, such as math, scores samples of {name!r}; delete this filter"
            yield Finding(("data", name, "filters", "unreadable_gold"), text, (("data", name),))


def reading_uses(recipe: Recipe, source: str, base: Path) -> list[RewardUse]:
    """Return the required rewards that score samples of a source and read its reference answers, without those that cannot be loaded."""
    uses = [
        use for stage in recipe.stages if source in source_names(getattr(stage, "prompts", None)) for use in getattr(stage, "rewards", [])
    ]
    evaluations = [recipe.evaluation, *(stage.evaluation for stage in recipe.stages if isinstance(stage, config.EvalStage))]
    uses += [evaluation.accuracy for evaluation in evaluations if evaluation is not None and evaluation.prompts == source]
    return list({json.dumps([use.use, use.settings], default=str): use for use in uses if _reads(use, base)}.values())


def _reads(use: RewardUse, base: Path) -> bool:
    from rewards import RewardError
    from rewards.load import build_reward

    try:
        fn = build_reward(use.use, use.settings, base)
    except RewardError:
        return False
    return fn.reads_gold and (fn.required if use.required is None else use.required)


def source_columns(name: str, source: DataSource, base: Path, is_imitated: bool = False) -> tuple[frozenset[str] | None, list[Finding]]:
    """Return the columns of a source's rows after renaming, or None if only loading can tell, and what is wrong with the source."""
    at: Keys = ("data", name)
    from rewards.load import missing_column

    columns, findings = _raw_columns(source, base, at)
    if source.measured and not (base / source.measured).is_file():
        findings.append(Finding((*at, "measured"), no_file(base / source.measured)))
    if source.generator:
        findings += _python_name(source.generator, base, (*at, "generator"))
    fields, wrong = _format_fields(source.question)
    if wrong:
        findings.append(Finding((*at, "question"), wrong))
    if columns is None or findings:
        return None, findings
    for ours, theirs in source.columns.items():
        if theirs not in columns:
            findings.append(Finding((*at, "columns", ours), missing_column(theirs, columns), (at,)))
    columns = frozenset(column for column in columns if "." not in column) | source.columns.keys()
    if "messages" in columns and "completion" not in columns and (is_imitated or not {"prompt", "question"} & columns):
        columns |= {"prompt", "completion"}
    for field in fields:
        if field not in columns:
            findings.append(Finding((*at, "question"), missing_column(field, columns), (at,)))
    if source.question is None and not {"prompt", "question"} & columns:
        text = f"{missing_column('prompt', columns)} (columns: {{prompt: ...}} names it, question: 'Calculate {{...}}.' writes it)"
        findings.append(Finding((*at, "columns"), text, (at,)))
    if source.only is not None and (mistake := _regex_mistake(source.only)):
        findings.append(Finding((*at, "only"), mistake))
    if source.completion == "worked_sums":
        if "expression" not in columns:
            findings.append(Finding((*at, "completion"), missing_column("expression", columns), (at,)))
        columns |= {"completion"}
    columns |= {"prompt"} | ({"pass_rate"} if source.measured or source.measured_in else set())
    for key in ("min_pass_rate", "max_pass_rate"):
        if getattr(source.filters, key) is not None and "pass_rate" not in columns:
            text = f"{missing_column('pass_rate', columns)}; measured: FILE gives prompts theirs"
            findings.append(Finding((*at, "filters", key), text, (at,)))
    return columns, findings


def _regex_mistake(pattern: str) -> str | None:
    try:
        re.compile(pattern)
    except re.error as error:
        return f"{pattern!r} is not a regular expression: {error}"
    return None


def _raw_columns(source: DataSource, base: Path, at: Keys) -> tuple[frozenset[str] | None, list[Finding]]:
    if source.reasoning_gym:
        return _task_columns(source.reasoning_gym, source.settings, at)
    if source.general:
        return frozenset({"prompt", "completion", "answer"}), []
    for kind, file in source.given.items():
        if kind in ("jsonl", "json", "csv", "parquet"):
            path = base / file
            if not path.is_file():
                return None, [Finding((*at, kind), no_file(path))]
            return _peek(path, kind), []
        if kind == "folder" and not (base / file).is_dir():
            return None, [Finding((*at, kind), f"there is no folder {shown_path(base / file)}")]
    return None, []


def _task_columns(task: str, settings: dict[str, Any], at: Keys) -> tuple[frozenset[str] | None, list[Finding]]:
    """Return the columns of a reasoning-gym task, from one problem that is generated with these settings."""
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError:
        return None, [Finding((*at, "reasoning_gym"), "reasoning_gym is not installed; run pip install reasoning-gym")]
    if task not in DATASETS:
        close = suggestion(task, DATASETS) or f"; tasks are {listed(sorted(DATASETS))}"
        return None, [Finding((*at, "reasoning_gym"), f"reasoning_gym has no task {task!r}{close}")]
    known = [name for name in DATASETS[task][1].__dataclass_fields__ if name not in ("seed", "size")]
    unknown = [name for name in settings if name not in known]
    if unknown:
        texts = [(name, suggestion(name, known) or f"; settings are {listed(known)}") for name in unknown]
        return None, [Finding((*at, "settings", name), f"task {task!r} has no setting {name!r}{text}") for name, text in texts]
    try:
        item = reasoning_gym.create_dataset(task, size=1, seed=0, **settings)[0]
    except Exception as error:  # the task's own checks may raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        return None, [Finding((*at, "settings"), f"task {task!r} refuses these settings: {reason}")]
    return frozenset({"question", "answer", "metadata", *item["metadata"]}), []


def _peek(path: Path, kind: str) -> frozenset[str] | None:
    """Return the columns that the beginning of a file shows, or None if it cannot be read, which loading reports with the line."""
    try:
        if kind == "parquet":
            import pyarrow.parquet

            return frozenset(_schema_columns(pyarrow.parquet.read_schema(path)))
        with path.open(encoding="utf-8-sig", newline="") as file:
            if kind == "json":
                return None  # a JSON file cannot be read in part
            if kind == "csv":
                header = next(csv.reader(file), [])
                return None if len(header) == 1 and any(sign in header[0] for sign in ";\t|") else frozenset(header)
            lines = [line for _ in range(PEEK_ROWS) if (line := file.readline(PEEK_BYTES)).strip()]
        rows = [json.loads(line) for line in lines]
    except (ImportError, OSError, ValueError, csv.Error):
        return None
    if not rows or not all(isinstance(row, dict) for row in rows):
        return None
    return frozenset(key for row in rows for key in (*row, *nested_columns(row)))


def nested_columns(row: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """Yield the fields inside of a row's columns by their names in ``columns``: reward_model.ground_truth."""
    for key, value in row.items():
        if before:
            yield f"{before}{key}"
        if isinstance(value, Mapping) and before.count(".") < 5:
            yield from nested_columns(value, f"{before}{key}.")


def _schema_columns(fields: Any, before: str = "") -> Iterator[str]:
    """Yield the names of a Parquet file's columns and of the fields inside of them."""
    import pyarrow

    for field in fields:
        yield f"{before}{field.name}"
        if pyarrow.types.is_struct(field.type):
            yield from _schema_columns([field.type.field(number) for number in range(field.type.num_fields)], f"{before}{field.name}.")


def _format_fields(pattern: str | None) -> tuple[list[str], str | None]:
    """Return the columns that a format string names, and what is wrong with it."""
    try:
        fields = [field for _, field, _, _ in Formatter().parse(pattern or "") if field is not None]
    except ValueError as error:
        return [], f"not a format string: {error}; write a literal brace twice: {{{{"
    odd = [field for field in fields if not field.isidentifier()]
    if odd:
        return [], f"{{{odd[0]}}} is not a column name; braces may only hold a column name"
    return fields, None


def _completions(names: Mixture | None, columns: Columns, keys: Keys) -> Iterator[Finding]:
    """Check that rows to imitate have a completion beside the prompt."""
    from rewards.load import missing_column

    for name in source_names(names):
        known = columns.get(name)
        if known is not None and "completion" not in known:
            yield Finding(keys, f"data source {name!r}: {missing_column('completion', known)}", (("data", name),))


def _curriculum(curriculum: config.ByDifficulty | None, sources: Mixture | None, columns: Columns, keys: Keys) -> Iterator[Finding]:
    """Check that every source of a curriculum has the column that it orders by."""
    from rewards.load import missing_column

    if curriculum is None:
        return
    for name in source_names(sources):
        known = columns.get(name)
        if known is not None and curriculum.by not in known:
            text = f"data source {name!r}: {missing_column(curriculum.by, known)}; measured: FILE gives prompts a pass_rate"
            yield Finding(keys, text, (("data", name),))


# --- Rewards --------------------------------------------------------------------------------------


def _evaluation(evaluation: Evaluation, columns: Columns, base: Path, at: Keys) -> Iterator[Finding]:
    for name in ("accuracy", "well_formed", "lenient"):
        if use := getattr(evaluation, name):
            yield from _reward(use, evaluation.prompts, columns, base, (*at, name))


def _reward(use: RewardUse, prompts: Mixture | None, columns: Columns, base: Path, keys: Keys) -> Iterator[Finding]:
    """Check that a reward can be loaded, accepts its settings, and finds its columns in every source of prompts."""
    from rewards import check_reward

    for name in source_names(prompts) or [""]:
        known = columns.get(name)
        if known is not None:
            known |= {SOURCE_COLUMN}
        for text in check_reward(use.use, use.settings, known, base):
            about = f"data source {name!r}: " if text.startswith("column ") and name else ""
            ours = suggestion(next((setting for setting in use.settings if repr(setting) in text), ""), OUR_REWARD_KEYS)
            hint = ours if "did you mean" not in text else ""
            yield Finding(keys, f"{about}{text}{hint}", (("data", name),) if columns.get(name) is not None else ())


# --- Files and functions --------------------------------------------------------------------------


def _model(model: str | MadeModel | PretrainedModel, columns: Columns, base: Path, keys: Keys) -> Iterator[Finding]:
    """Check that a local model folder exists and has a tokenizer, and that a tiny model has problems for its corpus."""
    from rewards.load import missing_column

    if isinstance(model, MadeModel):
        known = columns.get(model.problems)
        if known is not None and "expression" not in known:
            text = f"data source {model.problems!r}: {missing_column('expression', known)}"
            yield Finding((*keys, "problems"), text, (("data", model.problems),))
        return
    path = model if isinstance(model, str) else model.path
    is_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    if is_local and not (base / Path(path).expanduser()).is_dir():
        folder = shown_path(base / Path(path).expanduser())
        command = FETCHED_BY.get(Path(path).name)
        do = f"get it first: {command} --out {folder}" if command else "name one, or a hub id such as Qwen/Qwen2.5-1.5B"
        yield Finding(keys, f"model {path!r}: there is no folder {folder}; {do}")


def _algorithm(ref: str, base: Path, keys: Keys) -> Iterator[Finding]:
    from grpo.algorithm.names import NAMES

    if ref in NAMES:
        return
    if ".py" in ref:
        yield from _python_name(ref, base, keys)
    else:
        yield Finding(keys, f"unknown algorithm {ref!r}; algorithms are {listed(NAMES)} or ./file.py:NAME{suggestion(ref, NAMES)}")


def _tracker(ref: str, base: Path, keys: Keys) -> Iterator[Finding]:
    if ".py" in ref:
        yield from _python_name(ref, base, keys)
    elif ref not in TRACKERS:
        yield Finding(keys, f"unknown tracker {ref!r}; trackers are {listed(TRACKERS)} or ./file.py:Class{suggestion(ref, TRACKERS)}")
    elif not any(
        (spec := find_spec(module)) and spec.origin for module in TRACKERS[ref]
    ):  # a folder ./wandb would be found as a package without origin
        yield Finding(
            keys, f"tracker {ref!r} is not installed; run pip install {TRACKERS[ref][0]}, or delete it: metrics.jsonl has everything"
        )


def _python_name(ref: str, base: Path, keys: Keys) -> Iterator[Finding]:
    """Check ./file.py:name: the file parses and defines the name at its top level. Nothing in it is run."""
    file, _, name = ref.rpartition(":")
    path = base / file
    if not file.endswith(".py"):
        yield Finding(keys, f"expected ./file.py:name, found {ref!r}")
    elif not path.is_file():
        yield Finding(keys, no_file(path))
    else:
        try:
            bound = _top_level_names(ast.parse(path.read_bytes()))
        except (SyntaxError, ValueError) as error:
            yield Finding(keys, f"{shown_path(path)} is not Python: {error}")
            return
        if name not in bound and "*" not in bound:
            yield Finding(keys, f"there is no {name!r} in {shown_path(path)}; it has {listed(bound)}{suggestion(name, bound)}")


def _top_level_names(module: ast.Module) -> list[str]:
    """Return the names defined at the top level of a file, also inside if and try. A star import gives "*"."""
    names = []
    for statement in module.body:
        for node in ast.walk(statement) if isinstance(statement, ast.If | ast.Try) else [statement]:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.append(node.name)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names += [alias.asname or alias.name for alias in node.names]
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names += [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]
    return names
