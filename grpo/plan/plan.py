"""The whole plan: what the modules of this room find, together. An outline at once; then what it needs, for which torch is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo.config import AnyStage, DistillStage, EvalStage, Evaluation, Recipe, RejectStage, RlStage, SftStage, source_names
from grpo.config.load import LoadedRecipe
from grpo.data.gold_checks import Trial
from grpo.data.preview import Preview, previews
from grpo.plan.architecture import Architecture, architectures
from grpo.plan.changes import Changes, changes_of
from grpo.plan.disk import Written, written_by
from grpo.plan.duration import Costs, Rates, Seconds, seconds_of_stage, stated_rates
from grpo.plan.hardware import Site, site_of
from grpo.plan.rows import Limit, RenderedPrompt, over_limits, rendered
from grpo.plan.side_effects import Contact, contacts_of
from grpo.plan.work import Lengths, drawings, rows_made, training_of
from grpo.resources.ray_cluster import obstacles
from grpo.run.folder import RunFolder
from grpo.run.stage_states import PlannedStage, make_plan

if TYPE_CHECKING:
    from grpo.plan.memory import StageMemory


@dataclass(frozen=True)
class Outline:
    """What can be told from the recipe and the data that are here."""

    loaded: LoadedRecipe
    out: Path
    stages: tuple[PlannedStage, ...]
    changes: Changes | None
    site: Site
    architectures: Mapping[str, Architecture]
    rows: tuple[Preview, ...]
    prompts: tuple[RenderedPrompt, ...]

    @property
    def recipe(self) -> Recipe:
        return self.loaded.recipe


@dataclass(frozen=True)
class Needs:
    """By stage, where it is known; ``unknown`` says why the rest is not, ``problems`` what does not fit, ``trial`` what gold answers score."""

    memory: Mapping[str, StageMemory]
    disk: Mapping[str, tuple[Written, ...]]
    contacts: tuple[Contact, ...]
    rates: Rates | Costs | None
    seconds: Mapping[str, Seconds]
    unknown: tuple[str, ...]
    problems: tuple[str, ...]
    trial: Trial = Trial()


def outline(loaded: LoadedRecipe, out: Path) -> Outline:
    """Raises RecipeError where ``out`` can't be written or a finished stage in it was made by other settings, DataError where rows cannot be read."""
    recipe, base = loaded.recipe, loaded.base
    RunFolder(out).check()
    known = architectures(recipe, base)
    return Outline(
        loaded=loaded,
        out=out,
        stages=tuple(make_plan(loaded, RunFolder(out))),
        changes=changes_of(loaded),
        site=site_of(recipe, out),
        architectures=known,
        rows=fitting_rows(recipe, base, known),
        prompts=tuple(_prompts(recipe, base, known)),
    )


def fitting_rows(recipe: Recipe, base: Path, known: Mapping[str, Architecture]) -> tuple[Preview, ...]:
    """What there is to know about every source's rows before a run. Raises DataError where rows cannot be read, or none of a source's fits."""
    return tuple(_without_long(found, recipe, base, known) for found in previews(recipe, base))


def needs(plan: Outline, lengths: Lengths = Lengths(), measure: bool = False, trial: Trial = Trial()) -> Needs:  # noqa: B008 - frozen
    """Memory, disk, time, and what is opened and fetched. Raises TrainingError where ``measure`` cannot be done."""
    from grpo.plan.memory import memory_of

    recipe, known = plan.recipe, plan.architectures
    found = {p.stage.name: memory_of(p.stage, recipe, known, plan.site, plan.loaded.base) for p in plan.stages}
    memory = {name: of_stage for name, of_stage in found.items() if of_stage is not None}
    unknown = [f"memory and time of stage {name!r}: {known[name].ref}: {known[name].known_from}" for name in found if name not in memory]
    disk = {
        p.stage.name: tuple(
            written_by(p.stage, recipe, known[p.stage.name], memory[p.stage.name].trained if p.stage.name in memory else None)
        )
        for p in plan.stages
    }
    rates = _measured(plan, memory, lengths) if measure else stated_rates(recipe.hardware)
    seconds: dict[str, Seconds] = {}
    if rates is None:
        unknown.append("time: state hardware.tflops and hardware.bandwidth_gb_s, or ask with --measure on the machine itself")
    else:
        seconds, why_not = _seconds(plan, memory, lengths, rates)
        unknown += why_not
    problems = [*obstacles(), *(problem for of_stage in memory.values() for problem in of_stage.problems), *_disk_problems(plan, disk)]
    return Needs(memory, disk, tuple(contacts_of(recipe, known)), rates, seconds, tuple(unknown), tuple(problems), trial)


def _without_long(found: Preview, recipe: Recipe, base: Path, known: Mapping[str, Architecture]) -> Preview:
    """With those counted that are over a limit of the stages and evaluations that use them, where a tokenizer is at hand."""
    limits: dict[tuple[str, int, int | None], Limit] = {}
    for stage in recipe.stages:
        tokenizer = _tokenizer(known[stage.name])
        if tokenizer is None:
            continue
        for limit in _limits(stage, found.source, recipe, known[stage.name], tokenizer):
            limits.setdefault((limit.name, limit.tokens, limit.positions), limit)
    return over_limits(found, recipe, base, list(limits.values())) if limits else found


def _limits(stage: AnyStage, source: str, recipe: Recipe, model: Architecture, tokenizer: Any) -> Iterator[Limit]:
    """What a stage leaves out of a source by length."""
    if isinstance(stage, RlStage | RejectStage) and source in source_names(stage.prompts):
        yield Limit("max_prompt_tokens", stage.max_prompt_tokens, stage.name, tokenizer)
    if isinstance(stage, SftStage | DistillStage) and source in source_names(stage.data):
        positions = model.positions if model.config else None
        yield Limit("max_tokens", stage.max_tokens, stage.name, tokenizer, imitated=True, positions=positions)
    evaluation = (stage.evaluation if isinstance(stage, EvalStage) else None) or (
        None if isinstance(stage, RejectStage) else recipe.evaluation
    )
    if isinstance(evaluation, Evaluation) and source == evaluation.prompts:
        room = evaluation.max_prompt_tokens or (
            model.positions - evaluation.max_completion_tokens if model.config and model.positions else None
        )
        if room is not None:
            yield Limit("evaluation.max_prompt_tokens", room, stage.name, tokenizer)


def _prompts(recipe: Recipe, base: Path, known: Mapping[str, Architecture]) -> list[RenderedPrompt]:
    """The first prompt of each source that a stage uses."""
    users = {
        name: stage for stage in reversed(recipe.stages) for key in ("data", "prompts") for name in source_names(getattr(stage, key, None))
    }
    found = [rendered(name, recipe, base, _tokenizer(known[users[name].name])) for name in recipe.data if name in users]
    return [prompt for prompt in found if prompt is not None]


def _tokenizer(model: Architecture) -> Any:
    """None where it is not on this machine."""
    files = ("tokenizer.json", "tokenizer.model", "vocab.json")
    return _loaded_tokenizer(model.folder) if model.folder and any((model.folder / file).is_file() for file in files) else None


@cache
def _loaded_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def _known_rows(plan: Outline) -> dict[str, int]:
    """Of sources, and of what stages will write, at most."""
    stated = {name: source.rows for name, source in plan.recipe.data.items() if source.rows is not None}
    rows = {**stated, **{found.source: found.rows for found in plan.rows if found.rows is not None}}
    for planned in plan.stages:
        if isinstance(planned.stage, RejectStage):
            try:
                rows[planned.stage.name] = rows_made(planned.stage, rows)
            except KeyError:
                continue
    return rows


def _seconds(
    plan: Outline, memory: Mapping[str, StageMemory], lengths: Lengths, rates: Rates | Costs
) -> tuple[dict[str, Seconds], list[str]]:
    rows, seconds, why_not = _known_rows(plan), {}, []
    for planned in plan.stages:
        stage, of_stage = planned.stage, memory.get(planned.stage.name)
        if of_stage is None or planned.is_done:
            continue
        try:
            drawn = list(drawings(stage, plan.recipe, plan.architectures, rows, lengths))
            training = training_of(stage, plan.architectures, _has_reference(stage, plan.loaded.base), rows, lengths)
        except KeyError as source:
            why_not.append(f"time of stage {stage.name!r}: how many rows {source} has; say at most how many with rows:")
            continue
        seconds[stage.name] = seconds_of_stage(drawn, training, of_stage.tokens_per_pass, of_stage.trained, plan.recipe, rates)
    return seconds, why_not


def _has_reference(stage: AnyStage, base: Path) -> bool:
    from grpo.trainer.memory_budget import TrainedStage, has_reference

    return isinstance(stage, TrainedStage) and has_reference(stage, base)


def _measured(plan: Outline, memory: Mapping[str, StageMemory], lengths: Lengths) -> Costs:
    """With the model and the lengths of the first stage that trains and whose memory is known."""
    from grpo.errors import RecipeError
    from grpo.plan.measure import measured_costs

    for planned in plan.stages:
        stage, of_stage = planned.stage, memory.get(planned.stage.name)
        if of_stage is not None and of_stage.tokens_per_pass is not None:
            prompt = lengths.prompt or int(getattr(stage, "max_prompt_tokens", 64))
            completion = lengths.completion or int(getattr(stage, "max_completion_tokens", 256))
            return measured_costs(plan.recipe, plan.architectures[stage.name], prompt, completion, of_stage.tokens_per_pass)
    raise RecipeError("--measure: no stage trains a model whose shapes are known")


def _disk_problems(plan: Outline, disk: Mapping[str, tuple[Written, ...]]) -> list[str]:
    """Models, and the checkpoints of whichever stage has the largest: they are certain, and samples a bound."""
    to_make = [planned.stage.name for planned in plan.stages if not planned.is_done]
    certain = [item for name in to_make for item in disk[name] if not item.is_bound]
    passing = max((item.size for item in certain if item.is_passing), default=0)
    needed = sum(item.size for item in certain if not item.is_passing) + passing
    if needed <= plan.site.disk_bytes:
        return []
    return [
        f"the run's models and checkpoints do not fit the disk: they take {needed / 2**30:.1f} GiB in {plan.out}, and "
        f"{plan.site.disk_bytes / 2**30:.1f} are free. (1) choose another --out (2) make room (3) take away stages, or take a smaller model"
    ]
