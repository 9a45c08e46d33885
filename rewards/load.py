"""How a reference in a recipe becomes a reward: a shipped name, an installed one, ./file.py:name, or package.module:name."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import nullcontext
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rewards.errors import RewardError, one_line
from rewards.function import RESERVED, Options, RewardFn, with_settings
from rewards.prints import printing_to_stderr

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

SHIPPED = {
    "math": "the answer equals column 'answer', as mathematics: 1 or 0",
    "exact": "the answer equals column 'answer', as text: 1 or 0",
    "fuzzy": "how alike the answer and column 'answer' are, as text: 0 to 1",
    "choice": "the answer is the right option of a multiple choice: 1 or 0",
    "code": "the code passes column 'tests', in a sandbox: 1 or 0, or the share passed",
    "reasoning_gym": "what a reasoning-gym task's own verifier says: 0 to 1",
    "format": "one think block, then one answer block: 1 or 0",
    "language": "share of the thinking's words that are in the target language",
    "length": "DAPO's soft punishment of overlong completions: 0 to -1",
    "repetition": "minus the share of repeated n-grams",
    "judge": "what a model behind an OpenAI-compatible endpoint thinks of it: 0 to 1",
    "reward_model": "what a sequence-classification model gives it: its raw score",
}
MODULE_OF = {"code": "rewards.code.reward", "judge": "rewards.models.judge", "reward_model": "rewards.models.reward_model"}
"""Where a shipped reward is, if not in a module of rewards.rules that has its name."""
ENTRY_POINTS = "grpo.rewards"
"""The group of entry points under which an installed distribution offers rewards: a recipe names them as it names the shipped ones."""
SAME_MEANING = (
    {"answer", "solution", "target", "label", "gold", "ground_truth", "final_answer", "expected"},
    {"prompt", "question", "problem"},
)
"""Column names that data sets use for the same thing: suggested where the spelling is of no help."""


def load_reward(ref: str, /, *, base: Path | str | None = None, **settings: Any) -> RewardFn:
    """The reward that ``ref`` names, with its settings checked. A path in ``ref`` is relative to ``base`` (default: here)."""
    return build_reward(ref, settings, base)


def build_reward(ref: str, settings: Mapping[str, Any], base: Path | str | None = None) -> RewardFn:
    """load_reward with the settings as a mapping, so that a setting may have any name."""
    fn, problems = _read(ref, settings, Path(base or "."))
    if problems:
        raise RewardError("\n".join(problems))
    return fn


def describe_reward(ref: str, base: Path | str | None = None) -> RewardFn:
    """What ``ref`` names, to be read about: a setting that has no default is inspect.Parameter.empty."""
    return _read(ref, {}, Path(base or "."))[0]


def installed_rewards() -> dict[str, str]:
    """{name: module:function} of the rewards that installed distributions offer as entry points; a shipped name is never theirs."""
    return {point.name: point.value for point in _entry_points() if point.name not in SHIPPED}


def check_reward(
    ref: str, settings: Mapping[str, Any], columns: Collection[str] | None = None, base: Path | str | None = None
) -> list[str]:
    """Every problem with a reward in a recipe, one line each. ``columns`` are the data's (None: not known yet); reserved names come free.

    A reward of the user's own is imported for this; the shipped ones are light.
    """
    try:
        fn, problems = _read(ref, settings, Path(base or "."))
    except RewardError as error:
        return [str(error)]
    if columns is not None:
        problems += [f"reward {ref!r}: {missing_column(name, columns)}" for name in fn.missing([*columns, *RESERVED])]
    return problems


def missing_column(name: str, columns: Collection[str]) -> str:
    """column 'answer' not found; found ['question', 'solution']; did you mean 'solution'?"""
    synonyms = [column for same in SAME_MEANING if name in same for column in columns if column in same]
    return f"column {name!r} not found; found {sorted(columns)}{_did_you_mean(name, columns, synonyms)}"


def _read(ref: str, settings: Mapping[str, Any], base: Path) -> tuple[RewardFn, list[str]]:
    """The reward, and what is wrong with it or its settings. What somebody's code prints meanwhile is no output of ours."""
    with nullcontext() if ref in SHIPPED else printing_to_stderr():
        return _describe(ref, _find(ref, base), settings, base)


def _find(ref: str, base: Path) -> Callable:
    """The function itself, imported."""
    where, colon, name = ref.rpartition(":")
    if not colon:
        if ref in SHIPPED:
            return getattr(importlib.import_module(MODULE_OF.get(ref, f"rewards.rules.{ref}")), ref)
        if ref.endswith(".py"):
            raise RewardError(f"reward {ref!r} names a file but no function; write {ref}:name")
        installed = installed_rewards()
        if ref in installed:
            return _load_entry_point(ref)
        known = f"shipped rewards: {', '.join(SHIPPED)}; {_listed('installed', installed)}; or write ./file.py:name or package.module:name"
        raise RewardError(f"unknown reward {ref!r}{_did_you_mean(ref, [*SHIPPED, *installed])}; {known}")
    is_file = where.endswith(".py") or "/" in where
    module = _import_file(ref, base / Path(where).expanduser()) if is_file else _import_module(ref, where)
    function = getattr(module, name, None)
    if function is None:
        found = [key for key, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == module.__name__]
        raise RewardError(f"reward {ref!r}: {where} has no function {name!r}; found {found}{_did_you_mean(name, found)}")
    if not callable(function):
        raise RewardError(f"reward {ref!r}: {name!r} in {where} is {type(function).__name__}, not a function")
    return function


def _entry_points() -> Iterable[EntryPoint]:
    from importlib.metadata import entry_points

    return entry_points(group=ENTRY_POINTS)


def _load_entry_point(ref: str) -> Callable:
    found = sorted({point.value: point for point in _entry_points() if point.name == ref}.items())
    if len(found) > 1:
        raise RewardError(f"reward {ref!r} is offered more than once: {', '.join(value for value, _ in found)}; write one of these instead")
    value, point = found[0]
    try:
        function = point.load()
    except Exception as error:
        raise RewardError(f"reward {ref!r}: the installed {value} cannot be loaded: {one_line(error)}") from error
    if not callable(function):
        raise RewardError(f"reward {ref!r}: the installed {value} is {type(function).__name__}, not a function")
    return function


def _import_file(ref: str, path: Path) -> ModuleType:
    """Runs a user's file under a private name, so that it can neither shadow a module nor be shadowed (a user's rewards.py, say)."""
    path = path.resolve()
    if not path.is_file():
        near = [f"./{p.name}" for p in sorted(path.parent.glob("*.py"))] if path.parent.is_dir() else []
        raise RewardError(f"reward {ref!r}: no file {path}{_did_you_mean('./' + path.name, near)}")
    name = f"_user_reward_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise RewardError(f"reward {ref!r}: {path} cannot be loaded: {one_line(error)}") from error
    return module


def _import_module(ref: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise RewardError(
            f"reward {ref!r}: module {name!r} cannot be imported: {one_line(error)}; for a file write ./file.py:name"
        ) from error


def _describe(ref: str, function: Callable, settings: Mapping[str, Any], base: Path) -> tuple[RewardFn, list[str]]:
    """Reads a function's signature: which parameters are columns, which are settings, and what is wrong with either."""
    parameters = inspect.signature(function).parameters.values()
    is_batch = any(parameter.name == "completions" for parameter in parameters)
    problems: list[str] = []
    columns: list[str] = []
    optional: list[str] = []
    known: dict[str, inspect.Parameter] = {}
    for parameter in parameters:
        has_default = parameter.default is not parameter.empty
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
            problems.append(f"reward {ref!r}: parameter {str(parameter)!r} can't be filled; parameters are column names, passed by keyword")
        elif parameter.kind is parameter.KEYWORD_ONLY and (has_default or not is_batch):
            known[parameter.name] = parameter
        elif parameter.kind is not parameter.VAR_KEYWORD:
            (optional if has_default else columns).append(parameter.name)
    values = {name: parameter.default for name, parameter in known.items()}
    for name, value in settings.items():
        if name in known:
            values[name], problem = _as_annotated(function, name, value, base)
            problems += [f"reward {ref!r}: setting {name}: {problem}"] if problem else []
        else:
            problems.append(f"reward {ref!r} has no setting {name!r}{_did_you_mean(name, known)}; {_listed('it has', known)}")
    problems += [f"reward {ref!r} needs the setting {name!r}" for name, value in values.items() if value is inspect.Parameter.empty]
    options = getattr(function, "reward_options", Options())
    if options.check is not None and not problems and (problem := options.check(**values)):
        problems.append(f"reward {ref!r}: {problem}")
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    name = ref.rpartition(":")[2]
    if options.scope == "group" and not is_batch:
        problems.append(f"reward {ref!r} judges groups, so it needs a parameter completions: a list of all samples of a prompt")
    if options.columns is not None and not problems:
        columns += with_settings(options.columns, values)
    return RewardFn(name, ref, function, tuple(columns), tuple(optional), values, options, is_batch, takes_all), problems


def _as_annotated(function: Callable, name: str, value: Any, base: Path) -> tuple[Any, str | None]:
    """A setting's value as its annotation wants it, or what is wrong with it. An annotation that can't be evaluated checks nothing.

    pydantic's validators in an annotation find the recipe's folder as info.context["base"].
    """
    try:
        annotation = typing.get_type_hints(function, include_extras=True)[name]
    except Exception:  # evaluating somebody's annotations
        return value, None
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(annotation).validate_python(value, context={"base": base}), None
    except ValidationError as error:
        return value, f"{error.errors()[0]['msg']}, found {value!r}"


def _did_you_mean(name: str, known: Iterable[str], first: Iterable[str] = ()) -> str:
    near = [*first, *get_close_matches(name, [*known], n=1)]
    return f"; did you mean {near[0]!r}?" if near else ""


def _listed(what: str, names: Collection[str]) -> str:
    return f"{what}: {', '.join(names)}" if names else f"{what} none"
