"""What is wrong with the models that a recipe starts from, and with what it asks of them? Told before anything is started."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from grpo.config import DistillStage, MadeModel, PretrainedModel, Recipe, RlStage, SftStage
from grpo.config.load import LoadedRecipe
from grpo.config.problems import Finding, Keys, in_reading_order
from grpo.config.sequence_lengths import evaluations_of, longest_completion, longest_prompt
from grpo.config.yaml_positions import locate
from grpo.errors import TrainingError
from grpo.plan.architecture import Architecture, architectures, models_drawn_from
from grpo.util.model_folder import folder_problems, has_shapes_alone, local_folder, nonfinite_tensors


def model_problems(folder: Path, ref: str, deeply: bool = True) -> list[str]:
    """All problems of a folder as lines that begin with the model's name. ``deeply`` looks at tensors too, for which torch is loaded."""
    files = tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in sorted(folder.glob("*")) if file.is_file())
    return [f"model {ref!r}: {problem}" for problem in _problems(folder, files, deeply)]


@cache
def _problems(folder: Path, files: tuple[tuple[str, int, int], ...], deeply: bool) -> tuple[str, ...]:
    """``files`` is what the answer is remembered by: a command may ask twice, and weights are long."""
    found = folder_problems(folder)
    if not deeply:
        return tuple(found)
    if not found:
        from grpo.trainer.loading import tensor_problems

        found = tensor_problems(folder)
    return (*found, *nonfinite_tensors(folder))


def check_models(loaded: LoadedRecipe, deeply: bool = True, needs_weights: bool = True) -> list[str]:
    """What ``model_findings`` finds, a line each, with the places in the recipe."""
    data = loaded.tree.plain()
    findings = model_findings(loaded.recipe, loaded.base, deeply, needs_weights)
    return in_reading_order([locate(finding, loaded.tree, data) for finding in findings], loaded.tree.location.file)


def model_findings(recipe: Recipe, base: Path, deeply: bool = True, needs_weights: bool = True) -> list[Finding]:
    """Of the recipe's model and of every student, and of the stages that start from them. ``base``: the folder that relative paths refer to.

    Without ``needs_weights`` a folder of a config.json and nothing else is right.
    """
    findings: list[Finding] = []
    for keys, model in _pretrained(recipe):
        folder = local_folder(model, base)
        if folder is not None and (needs_weights or not has_shapes_alone(folder)):
            findings += [Finding(keys, problem) for problem in model_problems(folder, model, deeply)]
    if findings:
        return findings
    known = architectures(recipe, base)
    findings = list(_too_long(recipe, known))
    return [*findings, *(_untrainable(recipe, known) if deeply else ())]


def _pretrained(recipe: Recipe) -> Iterator[tuple[Keys, str]]:
    """Where a recipe names a model that exists already."""
    named: list[tuple[Keys, str | MadeModel | PretrainedModel]] = [(("model",), recipe.model)]
    for index, stage in enumerate(recipe.stages):
        if isinstance(stage, DistillStage) and not isinstance(stage.from_, str):
            named.append((("stages", index, "from"), stage.from_))
    for keys, model in named:
        if not isinstance(model, MadeModel):
            yield keys, model if isinstance(model, str) else model.path


def longest_drawn(recipe: Recipe, drawn: Sequence[Architecture]) -> int:
    """The longest sequence that an engine may have to hold: one engine serves all stages and evaluations.

    Where no stage says how long prompts are, they are as long as models have room for, and no longer than 512 tokens.
    """
    completion = longest_completion(recipe)
    stated = [e.max_prompt_tokens + e.max_completion_tokens for e in evaluations_of(recipe) if e.max_prompt_tokens is not None]
    positions = min((model.positions for model in drawn if model.positions is not None), default=None)
    return max([completion + max(1, longest_prompt(recipe, lambda: positions)), *stated])


def _too_long(recipe: Recipe, known: Mapping[str, Architecture]) -> Iterator[Finding]:
    """Sequences longer than a model's positions, whatever the engine: what it says there follows from nothing that it learned."""
    for index, stage in enumerate(recipe.stages):
        drawn = [model for model in models_drawn_from(stage, recipe, known) if model.config is not None]
        if recipe.rollout.engine == "scripted" and not isinstance(stage, RlStage):
            continue
        longest = longest_drawn(recipe, drawn)
        for model in drawn:
            if model.positions is not None and longest > model.positions:
                yield Finding(
                    ("stages", index),
                    f"stage {stage.name!r} does not fit: an engine draws sequences of up to {longest:,} tokens, and {model.ref} has "
                    f"{model.positions:,} positions. (1) lower max_completion_tokens by {longest - model.positions:,} (2) lower "
                    "max_prompt_tokens (3) take a model with longer context",
                )


def _untrainable(recipe: Recipe, known: Mapping[str, Architecture]) -> Iterator[Finding]:
    """Architectures that the trainer does not compute, and adapters on layers that are not there."""
    from grpo.trainer.memory_budget import check_trained

    for index, stage in enumerate(recipe.stages):
        config = known[stage.name].config
        if not isinstance(stage, SftStage | RlStage | DistillStage) or config is None:
            continue
        try:
            check_trained(json.dumps(config), stage.lora and stage.lora.model_dump_json())
        except TrainingError as error:
            at: Keys = ("stages", index, "lora", "targets") if str(error).startswith("lora.targets") else ("stages", index)
            yield Finding(at, f"stage {stage.name!r}: {error}")
