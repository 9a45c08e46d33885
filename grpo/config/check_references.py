"""Checks that every name in a recipe refers to something of the right type."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from grpo.config import DistillStage, EvalStage, MadeModel, Mixture, Recipe, RejectStage, RlStage, SftStage, Weighted, source_names
from grpo.config.problems import Finding, Keys
from grpo.util.text import listed, suggestion

MAKES = {"sft": "a model", "rl": "a model", "distill": "a model", "reject": "a dataset", "eval": "no model and no dataset"}
MEASURES = ("eval", "reject", "rl")  # the kinds that leave samples of prompts with their rewards
REMEDY = {"a model": "name a stage of kind sft, rl or distill, or 'base'", "a dataset": "name a data source or a stage of kind reject"}


def reference_findings(recipe: Recipe) -> Iterator[Finding]:
    """Yield every name in a well-formed recipe that refers to nothing, to something of the wrong type, or to itself."""
    yield from _names(recipe)
    yield from _references(recipe)
    yield from _disjoint(recipe)
    yield from _measured(recipe)


def _names(recipe: Recipe) -> Iterator[Finding]:
    """Check that each name has one meaning: a stage, a data source, or the recipe's model ('base')."""
    names = [stage.name for stage in recipe.stages]
    for index, name in enumerate(names):
        keys: Keys = ("stages", index, "name")
        first = names.index(name)
        if first < index:
            yield Finding(keys, f"two stages are named {name!r}; rename one of them", (("stages", first, "name"),))
        if name == "base":
            yield Finding(keys, "a stage cannot be named 'base', which means the recipe's model; rename it")
        if name in recipe.data:
            yield Finding(keys, f"a stage and a data source are both named {name!r}; rename one of them", (("data", name),))
    if "base" in recipe.data:
        yield Finding(("data", "base"), "a data source cannot be named 'base', which means the recipe's model; rename it")


def _references(recipe: Recipe) -> Iterator[Finding]:
    """Check what stages and evaluations start from, learn from and read."""
    for index, stage in enumerate(recipe.stages):
        if isinstance(stage.from_, str):
            yield from _reference(recipe, index, ("from",), stage.from_, "starts from", "a model")
        if isinstance(stage.from_, MadeModel):
            yield from _source(recipe, ("stages", index, "from", "problems"), stage.from_.problems, "a tiny model's problems")
        if isinstance(stage, SftStage | DistillStage):
            yield from _row_references(recipe, index, "data", stage.data, "takes its rows from")
        if isinstance(stage, RlStage | RejectStage | DistillStage):
            yield from _row_references(recipe, index, "prompts", stage.prompts, "takes its prompts from")
        if isinstance(stage, DistillStage) and stage.teacher is not None:
            yield from _reference(recipe, index, ("teacher",), stage.teacher, "is taught by", "a model")
        if isinstance(stage, RejectStage):
            for number, mix in enumerate(stage.mix):
                yield from _reference(recipe, index, ("mix", number, "use"), mix.use, "mixes in", "a dataset")
        if isinstance(stage, EvalStage) and stage.evaluation:
            yield from _source(recipe, ("stages", index, "evaluation", "prompts"), stage.evaluation.prompts, "an evaluation's prompts")
    if isinstance(recipe.model, MadeModel):
        yield from _source(recipe, ("model", "problems"), recipe.model.problems, "a tiny model's problems")
    if recipe.evaluation:
        yield from _source(recipe, ("evaluation", "prompts"), recipe.evaluation.prompts, "an evaluation's prompts")


def _row_references(recipe: Recipe, index: int, key: str, names: Mixture | None, verb: str) -> Iterator[Finding]:
    if isinstance(names, str):
        yield from _reference(recipe, index, (key,), names, verb, "a dataset")
    for number, entry in enumerate(names if isinstance(names, list) else ()):
        keys: Keys = (key, number, "use") if isinstance(entry, Weighted) else (key, number)
        yield from _reference(recipe, index, keys, entry.use if isinstance(entry, Weighted) else entry, verb, "a dataset")


def _reference(recipe: Recipe, index: int, keys: Keys, name: str, verb: str, wanted: Literal["a model", "a dataset"]) -> Iterator[Finding]:
    """Check one name in a stage, which must refer to something of the wanted type that is made earlier."""
    names = [stage.name for stage in recipe.stages]
    if name == "base" and wanted == "a model" or name in recipe.data and wanted == "a dataset":
        return
    remedy = REMEDY[wanted]
    relies_on: tuple[Keys, ...] = ()
    if name == "base":
        what = f"which is the recipe's model; {remedy}"
    elif name in recipe.data:
        what = f"which is a data source; {remedy}"
        relies_on = (("data", name),)
    elif name not in names:
        earlier = [stage.name for stage in recipe.stages[:index] if MAKES[stage.kind] == wanted]
        known = [*(["base"] if wanted == "a model" else recipe.data), *earlier]
        close = suggestion(name, known)
        if not close and keys == ("from",) and recipe.stages[index].kind == "distill":
            close = "; for another model write {path: ...} or {make: ...}"
        what = f"which does not exist; it can be one of {listed(known)}{close}"
        relies_on = (("data", name), *(("stages", other, "name") for other in range(len(names))))
    elif (other := names.index(name)) == index:
        what = f"which is itself; {remedy}"
    elif other > index:
        what = f"which comes after it; move {name!r} up, or {remedy}"
    elif MAKES[kind := recipe.stages[other].kind] != wanted:
        what = f"which is {MAKES[kind]} (kind: {kind}); {remedy}" if kind != "eval" else f"which makes {MAKES[kind]} (kind: eval); {remedy}"
        relies_on = (("stages", other, "kind"),)
    else:
        return
    yield Finding(("stages", index, *keys), f"stage {names[index]!r} {verb} {name!r}, {what}", (("stages", index, "name"), *relies_on))


def _source(recipe: Recipe, keys: Keys, name: str, whose: str) -> Iterator[Finding]:
    """Check one name that must be a data source."""
    if name not in recipe.data:
        stage = "which is a stage" if name in [stage.name for stage in recipe.stages] else "which does not exist"
        text = f"{whose} must be a data source, found {name!r}, {stage}; sources are {listed(recipe.data)}{suggestion(name, recipe.data)}"
        yield Finding(keys, text, (("data", name),))


def _disjoint(recipe: Recipe) -> Iterator[Finding]:
    """Check that disjoint_from names other sources without a cycle, in which it would be undefined which source loses its prompts."""
    for name, source in recipe.data.items():
        for number, other in enumerate(source.disjoint_from):
            yield from _source(recipe, ("data", name, "disjoint_from", number), other, "disjoint_from")
    reported: set[str] = set()
    for name in recipe.data:
        circle = _circle(recipe, name)
        if circle and not reported & set(circle):
            reported |= set(circle)
            text = f"circular disjoint_from: {' -> '.join(circle)}; remove it from one of them"
            yield Finding(("data", name, "disjoint_from"), text, tuple(("data", other) for other in circle))


def _measured(recipe: Recipe) -> Iterator[Finding]:
    """Check that measured_in names a stage that writes samples, and that only later stages use the rows it measures."""
    kinds = {stage.name: stage.kind for stage in recipe.stages}
    writers = [name for name, kind in kinds.items() if kind in MEASURES]
    for source, stage in [(name, source.measured_in) for name, source in recipe.data.items() if source.measured_in is not None]:
        keys: Keys = ("data", source, "measured_in")
        if stage not in writers:
            what = f"which is of kind {kinds[stage]}" if stage in kinds else "which does not exist"
            text = (
                f"measured_in must be a stage of kind {' or '.join(MEASURES)}, found {stage!r}, {what}; it can be one of {listed(writers)}"
            )
            yield Finding(keys, text + suggestion(stage, writers), tuple(("stages", i, "kind") for i in range(len(kinds))))
            continue
        begun = [*kinds].index(stage)
        for index, user in enumerate(recipe.stages):
            for key in ("data", "prompts"):
                if source in source_names(getattr(user, key, None)) and index <= begun:
                    text = f"stage {user.name!r} uses rows of {source!r}, which stage {stage!r} has not measured yet; give it a source of its own"
                    yield Finding(("stages", index, key), text, (keys,))
        for other, where in _early_uses(recipe, source):
            text = f"{other} needs the rows of {source!r} from the start, but stage {stage!r} measures them; give it a source of its own"
            yield Finding(where, text, (keys,))


def _early_uses(recipe: Recipe, source: str) -> Iterator[tuple[str, Keys]]:
    """Yield what needs a source before any stage has run, with its keys."""
    if isinstance(recipe.model, MadeModel) and recipe.model.problems == source:
        yield "the tiny model", ("model", "problems")
    if recipe.evaluation and recipe.evaluation.prompts == source:
        yield "the evaluation", ("evaluation", "prompts")
    for name, other in recipe.data.items():
        if source in other.disjoint_from:
            yield f"data source {name!r}", ("data", name, "disjoint_from")


def _circle(recipe: Recipe, start: str) -> list[str] | None:
    """Return a path from a source back to itself along disjoint_from, if there is one."""
    paths, seen = [[start]], {start}
    while paths:
        path = paths.pop()
        for other in recipe.data[path[-1]].disjoint_from if path[-1] in recipe.data else ():
            if other == start:
                return [*path, start]
            if other not in seen:
                seen.add(other)
                paths.append([*path, other])
    return None
