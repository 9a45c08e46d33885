"""Checks settings that are valid alone but not together. Every finding gives the reason and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import get_args

from grpo import config
from grpo.config import (
    SOURCE_KEYS,
    DataSource,
    DistillStage,
    Evaluation,
    Filters,
    MadeModel,
    Mixture,
    PretrainedModel,
    Recipe,
    RejectStage,
    RewardUse,
    RlStage,
    SftStage,
    Weighted,
    kept_alive,
    source_names,
    source_weights,
)
from grpo.config.check_rollout import rollout_findings
from grpo.config.problems import Finding, Keys, clash
from grpo.util.text import listed, suggestion
from rewards.rules.language import Language


def contradictions(recipe: Recipe) -> Iterator[Finding]:
    """Yield the contradictions within one recipe, in the order of its keys."""
    yield from _model(recipe.model, ("model",))
    if recipe.tags.think == recipe.tags.answer:
        yield clash(("tags",), "thinking and answer have the same tag, so they could not be told apart; rename one", "think", "answer")
    for name, source in recipe.data.items():
        yield from _source(name, source)
    if recipe.evaluation:
        yield from _evaluation(recipe.evaluation, ("evaluation",))
        yield from _trained_on_held_out(recipe, recipe.evaluation.prompts)
    yield from rollout_findings(recipe)
    if recipe.trainer.shard != "none" and recipe.trainer.ranks == 1:
        text = f"shard: {recipe.trainer.shard} needs several ranks, and there is one; raise ranks or delete shard"
        yield clash(("trainer",), text, "shard", "ranks")
    if recipe.hardware.gpus and recipe.hardware.gpu_memory_gib is None:
        text = f"hardware gives {recipe.hardware.gpus} GPUs but not their memory; write gpu_memory_gib"
        yield clash(("hardware",), text, "gpus", "gpu_memory_gib")
    for index, stage in enumerate(recipe.stages):
        at: Keys = ("stages", index)
        if isinstance(stage, config.OptimizerKeys):
            yield from _optimizer(stage, at)
        if isinstance(stage, SftStage | DistillStage):
            yield from _supervised(stage, recipe, at)
        if isinstance(stage, SftStage | DistillStage) and stage.max_tokens > (
            limit := stage.max_tokens_per_micro_batch or stage.max_tokens
        ):
            text = f"max_tokens {stage.max_tokens} is more than max_tokens_per_micro_batch {limit}, so the longest row would not fit; "
            yield clash(at, f"{text}raise that or lower this", "max_tokens", "max_tokens_per_micro_batch")
        for key in ("data", "prompts"):
            yield from _mixture(getattr(stage, key, None), (*at, key))
        if isinstance(stage, RlStage):
            yield from _rl(stage, at, has_evaluation=recipe.evaluation is not None)
            yield from _choice_of_prompts(stage, recipe, at)
        if isinstance(stage, RlStage | RejectStage | DistillStage):
            yield from _reward_names(stage.rewards, at)
            for number, use in enumerate(stage.rewards):
                yield from _weight(use, (*at, "rewards", number), stage if isinstance(stage, RlStage) else None)
            yield from _on_error(stage.rewards, at)
        if isinstance(stage, RejectStage) or (isinstance(stage, DistillStage) and stage.teacher is not None):
            yield from _keep(stage, at)
        if isinstance(stage, DistillStage):
            yield from _distill(stage, at)
        if isinstance(stage, config.EvalStage):
            if stage.evaluation:
                yield from _evaluation(stage.evaluation, (*at, "evaluation"))
            elif not recipe.evaluation:
                text = f"stage {stage.name!r} has nothing to evaluate on: write evaluation: {{prompts: ...}} in the stage or in the recipe"
                yield Finding(at, text, (("evaluation",), (*at, "evaluation")))


def _model(model: str | MadeModel | PretrainedModel, at: Keys) -> Iterator[Finding]:
    if isinstance(model, MadeModel) and model.hidden_size % model.heads:
        text = f"hidden_size {model.hidden_size} is not a multiple of heads {model.heads}; change one of them"
        yield clash(at, text, "hidden_size", "heads")


def _source(name: str, source: DataSource) -> Iterator[Finding]:
    named = list(source.given)
    if not named:
        yield Finding(("data", name), f"data source {name!r} does not say where its rows come from; write one of {listed(SOURCE_KEYS)}")
    if len(named) > 1:
        text = f"data source {name!r} has {len(named)} source keys, {listed(named)}; keep one"
        yield Finding(("data", name, named[1]), text, tuple(("data", name, key) for key in named))
    if source.settings and named and not {"reasoning_gym", "generator"} & set(named):
        text = f"settings belong to reasoning_gym and generator, but data source {name!r} is a {named[0]}; delete them"
        yield Finding(("data", name, "settings"), text, (("data", name),))
    for key in ("subset", "revision"):
        if getattr(source, key) and named and named != ["hub"]:
            text = f"{key} belongs to Hub datasets, but data source {name!r} is a {named[0]}; delete it"
            yield Finding(("data", name, key), text, (("data", name),))
    if source.measured is not None and source.measured_in is not None:
        text = "measured and measured_in both give the prompts a pass rate; keep one"
        yield clash(("data", name), text, "measured_in", "measured")
    if source.measured_by is not None and source.measured is None and source.measured_in is None:
        text = "measured_by needs measured or measured_in; write one of them, or delete it"
        yield clash(("data", name), text, "measured_by", "measured", "measured_in")
    yield from _filters(source.filters, ("data", name, "filters"))


def _filters(filters: Filters, at: Keys) -> Iterator[Finding]:
    for what in ("prompt_tokens", "pass_rate"):
        least, most = getattr(filters, f"min_{what}"), getattr(filters, f"max_{what}")
        if least is not None and most is not None and least > most:
            text = f"min_{what} {least:g} is above max_{what} {most:g}, so no row would be left; swap them"
            yield clash(at, text, f"min_{what}", f"max_{what}")
    languages = get_args(Language)
    if filters.language is not None and filters.language not in languages:
        text = f"unknown language {filters.language!r}; languages are {listed(languages)}{suggestion(filters.language, languages)}"
        yield Finding((*at, "language"), text)


def _evaluation(evaluation: Evaluation, at: Keys) -> Iterator[Finding]:
    most = max(evaluation.pass_at, default=1)
    if most > evaluation.samples_per_prompt:
        text = (
            f"pass@{most} cannot be estimated from {evaluation.samples_per_prompt} samples per prompt; raise samples_per_prompt to {most}"
        )
        yield clash(at, text, "pass_at", "samples_per_prompt")
    for name in ("accuracy", "well_formed", "lenient"):
        if use := getattr(evaluation, name):
            yield from _weight(use, (*at, name), None)


def _optimizer(stage: config.OptimizerKeys, at: Keys) -> Iterator[Finding]:
    if stage.min_learning_rate > stage.learning_rate:
        text = f"min_learning_rate {stage.min_learning_rate:g} is above learning_rate {stage.learning_rate:g}; swap or lower it"
        yield clash(at, text, "min_learning_rate", "learning_rate")


def _supervised(stage: SftStage | DistillStage, recipe: Recipe, at: Keys) -> Iterator[Finding]:
    if (curriculum := stage.curriculum) is not None:
        if "epochs" in stage.model_fields_set:
            text = "epochs and curriculum both set the number of updates; delete one of them"
            yield clash(at, text, "epochs", "curriculum")
        for number, phase in enumerate(curriculum.phases):
            if phase.mix is not None and not any(phase.mix.weights):
                text = "every weight of mix is 0; write one for easy, medium or hard rows, or delete mix, and all rows count alike"
                yield Finding((*at, "curriculum", "phases", number, "mix"), text)
        if stage.warmup_updates > (updates := stage.num_updates(0)):
            text = f"warmup_updates {stage.warmup_updates} is more than the {updates} updates of all phases, so learning_rate would never "
            yield clash(at, f"{text}be reached; lower it", "warmup_updates", "curriculum")
    if (validation := stage.validation) is not None and validation.by == "accuracy":
        if recipe.evaluation is None:
            text = "validation by accuracy needs a held-out set: write evaluation: {prompts: ...} in the recipe, or by: loss"
            yield Finding((*at, "validation", "by"), text, (("evaluation",),))
        if "rows" in validation.model_fields_set:
            text = "rows are held back for by: loss, but accuracy is measured on the recipe's evaluation; delete rows"
            yield clash((*at, "validation"), text, "rows", "by")
    yield from _earlier(stage, recipe, at)


def _earlier(stage: SftStage | DistillStage, recipe: Recipe, at: Keys) -> Iterator[Finding]:
    """Check replay and ewc: there are earlier stages to protect, and the trainer can protect them."""
    keepers = [name for name in ("replay", "ewc") if getattr(stage, name)]
    if not keepers:
        if stage.earlier is not None:
            text = "earlier needs replay or ewc; write replay: 0.05, or delete earlier"
            yield clash(at, text, "earlier", "replay", "ewc")
        return
    known = [other.name for other in kept_alive(recipe, stage.model_copy(update={"earlier": None}))]
    for number, name in enumerate(stage.earlier or ()):
        if name not in known:
            text = f"{name!r} is not an earlier stage of kind sft or distill with data; it can be one of {listed(known)}"
            yield Finding((*at, "earlier", number), text + suggestion(name, known), (("stages",),))
    if not known or stage.earlier == []:
        text = f"{keepers[0]} needs an earlier stage of kind sft or distill with data, and there is none"
        yield Finding((*at, keepers[0]), f"{text}; delete it", ((*at, "earlier"),))
    if stage.ewc is not None and stage.lora is not None:
        text = "ewc protects weights that lora does not change; delete one of them"
        yield clash(at, text, "ewc", "lora")
    if stage.ewc is not None and recipe.trainer.ranks > 1:
        text = f"ewc works in one process, but trainer.ranks is {recipe.trainer.ranks}; write replay: 0.05 instead, or delete ranks"
        yield Finding((*at, "ewc"), text, (("trainer", "ranks"),))


def _rl(stage: RlStage, at: Keys, has_evaluation: bool) -> Iterator[Finding]:
    updates = stage.steps * stage.updates_per_rollout
    if stage.warmup_updates > updates:
        text = f"warmup_updates {stage.warmup_updates} is more than the stage's {updates} updates (steps x updates_per_rollout), so "
        remedy = f"learning_rate would never be reached; lower it to {updates // 10} or so"
        yield clash(at, text + remedy, "warmup_updates", "steps", "updates_per_rollout")
    if stage.prompts_per_step % stage.updates_per_rollout:
        text = f"{stage.prompts_per_step} prompts cannot be divided equally among {stage.updates_per_rollout} updates"
        yield clash(at, f"{text}; make prompts_per_step a multiple of updates_per_rollout", "prompts_per_step", "updates_per_rollout")
    tokens = stage.max_prompt_tokens + stage.max_completion_tokens
    if tokens > (stage.max_tokens_per_micro_batch or tokens):
        text = f"max_prompt_tokens + max_completion_tokens = {tokens} is more than max_tokens_per_micro_batch {stage.max_tokens_per_micro_batch}: "
        remedy = f"the longest sample would not fit; raise max_tokens_per_micro_batch to {tokens} or lower the others"
        yield clash(at, text + remedy, "max_completion_tokens", "max_prompt_tokens", "max_tokens_per_micro_batch")
    if stage.lora is not None and stage.refresh_reference_every is not None:
        text = "with lora the reference is the frozen weights below the adapters, which cannot be refreshed"
        yield clash(at, f"{text}; delete refresh_reference_every or lora", "refresh_reference_every", "lora")
    if stage.kl_in == "reward" and stage.kl_coef == 0:
        text = "kl_in: reward subtracts kl_coef times the KL divergence from the reward, but kl_coef is 0"
        yield clash(at, f"{text}; write a kl_coef above 0 or delete kl_in", "kl_in", "kl_coef")
    if stage.importance == "none" and stage.importance_cap is not None:
        text = f"importance_cap {stage.importance_cap:g} has no effect with importance: none; delete one of them"
        yield clash(at, text, "importance_cap", "importance")
    if stage.clip_low is not None and stage.clip_low > 1:
        text = f"clip_low {stage.clip_low:g} puts the lower bound of the ratio at {1 - stage.clip_low:g}, which no ratio can reach"
        yield clash(at, f"{text}; write a number from 0 to 1 (1 leaves that side unclipped)", "clip_low")
    for name, is_on in (("top_p", stage.top_p < 1), ("top_k", stage.top_k > 0), ("min_p", stage.min_p > 0)):
        if is_on:
            text = f"{name} {getattr(stage, name)} samples from a truncated distribution, but the trainer computes probabilities of the full one"
            yield clash(at, f"{text}, so every ratio would be wrong; delete it (it is fine in reject and evaluation)", name)
    if all(use.weight == 0 for use in stage.rewards):
        yield Finding((*at, "rewards"), "all rewards have weight 0, so every advantage would be 0; give one a weight")
    elif (update := _first_update_without_weight(stage)) is not None:
        text = f"from update {update} on all rewards have weight 0, so every advantage would be 0; give one a weight there"
        yield Finding((*at, "rewards"), text)
    if stage.eval_every and not has_evaluation:
        text = "eval_every needs a held-out set: write evaluation: {prompts: ...} in the recipe"
        yield Finding((*at, "eval_every"), text, (("evaluation",),))


def _first_update_without_weight(stage: RlStage) -> int | None:
    schedules = [use.weight for use in stage.rewards if isinstance(use.weight, list)]
    if not all(map(_is_schedule, schedules)):
        return None
    changes = {0, *(int(since) for schedule in schedules for since, _ in schedule)}
    return next((update for update in sorted(changes) if not any(use.weight_at(update) for use in stage.rewards)), None)


def _is_schedule(pairs: list[list[float]]) -> bool:
    return bool(pairs) and all(len(pair) == 2 and pair[0] >= 0 and pair[0] == int(pair[0]) for pair in pairs)


def _weight(use: RewardUse, at: Keys, stage: RlStage | None) -> Iterator[Finding]:
    """Check a weight schedule: the stage has updates, they are in order, and each is reached."""
    if not isinstance(use.weight, list):
        return
    at = (*at, "weight")
    if stage is None:
        yield Finding(at, f"the weight of reward {use.part!r} is a schedule, which only a stage of kind rl can follow; write a number")
    elif not _is_schedule(use.weight):
        yield Finding(at, "a weight schedule is a list of [update, weight], such as [[0, 1.0], [400, 0.5]], with whole updates from 0")
    else:
        since = [int(update) for update, _ in use.weight]
        last = (stage.steps - 1) * stage.updates_per_rollout
        if any(later <= earlier for earlier, later in pairwise(since)):
            yield Finding(at, f"the updates of a weight schedule must increase; found {listed(since)}")
        elif since[-1] > last:
            text = (
                f"the weight changes at update {since[-1]}, but the stage's last step begins after {last} updates; lower it or raise steps"
            )
            yield Finding(at, text, ((*at[:2], "steps"), (*at[:2], "updates_per_rollout")))


def _choice_of_prompts(stage: RlStage, recipe: Recipe, at: Keys) -> Iterator[Finding]:
    if stage.curriculum is not None:
        if source_weights(stage.prompts):
            text = "a curriculum chooses prompts by difficulty, and weights choose them by source; delete one of them"
            yield clash(at, text, "curriculum", "prompts")
        steps = [phase.from_step for phase in stage.curriculum.phases]
        if steps[0] != 0 or steps != sorted(set(steps)):
            text = f"phases must begin at step 0 and each after the one before it; found from_step {listed(steps)}"
            yield Finding((*at, "curriculum", "phases"), text)
        if steps[-1] >= stage.steps:
            text = f"the last phase begins at step {steps[-1]}, but the last of {stage.steps} steps is {stage.steps - 1}; raise steps"
            yield Finding((*at, "curriculum", "phases"), text, ((*at, "steps"),))
    if stage.dynamic_sampling is not None and recipe.rollout.max_staleness:
        text = "max_staleness samples the next step before it is known which groups of this step must be replaced"
        yield Finding((*at, "dynamic_sampling"), f"{text}; delete one of them", (("rollout", "max_staleness"),))


def _mixture(sources: Mixture | None, at: Keys) -> Iterator[Finding]:
    if not isinstance(sources, list):
        return
    names = source_names(sources)
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        yield Finding(at, f"{doubled[0]!r} is listed twice; list a source once, with a larger weight if it should count more")
    plain = [entry for entry in sources if not isinstance(entry, Weighted)]
    if plain and len(plain) < len(sources):
        text = f"{plain[0]!r} has no weight but others do; write {{use: {plain[0]}, weight: ...}}, or remove all weights"
        yield Finding(at, text)


def _trained_on_held_out(recipe: Recipe, held_out: str) -> Iterator[Finding]:
    uses = [(stage.name, ("stages", i, key)) for i, stage in enumerate(recipe.stages) for key in ("data", "prompts")]
    learners = {at: name for name, at in uses if held_out in source_names(getattr(recipe.stages[at[1]], at[2], None))}
    if learners:
        text = f"{held_out!r} is the held-out set, but {listed(dict.fromkeys(learners.values()))} train on it; use another source"
        yield Finding(("evaluation", "prompts"), text, tuple(learners))


def _reward_names(rewards: list[RewardUse], at: Keys) -> Iterator[Finding]:
    names = [use.part for use in rewards]
    for index, name in enumerate(names):
        first = names.index(name)
        if first < index:
            keys = tuple((*at, "rewards", other, key) for other in (first, index) for key in ("use", "name"))
            yield Finding((*at, "rewards", index), f"two rewards are named {name!r}; give one of them another name", keys)


def _on_error(rewards: list[RewardUse], at: Keys) -> Iterator[Finding]:
    for index, use in enumerate(rewards):
        if use.on_error == "stop" and "max_error_frac" in use.model_fields_set:
            text = f"on_error: stop ends the run at the first failure, but max_error_frac {use.max_error_frac:g} allows some; delete one of them"
            yield clash((*at, "rewards", index), text, "max_error_frac", "on_error")


def _keep(stage: RejectStage | DistillStage, at: Keys) -> Iterator[Finding]:
    names = [use.part for use in stage.rewards]
    for name in stage.keep.min_reward:
        if name not in names:
            by_default = "" if "min_reward" in stage.keep.model_fields_set else " (the default)"
            text = f"keep.min_reward asks for {name!r}{by_default}, which is not among the stage's rewards {listed(names)}"
            remedy = suggestion(name, names) or "; add it to them, or write min_reward: {...} with one that is, or {} to keep everything"
            yield Finding((*at, "keep", "min_reward"), text + remedy, ((*at, "rewards"),))
    if stage.keep.per_prompt > stage.samples_per_prompt:
        text = (
            f"keep.per_prompt {stage.keep.per_prompt} is more than samples_per_prompt {stage.samples_per_prompt}; raise that or lower this"
        )
        yield Finding((*at, "keep", "per_prompt"), text, ((*at, "samples_per_prompt"),))


def _distill(stage: DistillStage, at: Keys) -> Iterator[Finding]:
    if not isinstance(stage.from_, str):
        yield from _model(stage.from_, (*at, "from"))
    if stage.teacher is not None and stage.data is not None:
        text = f"stage {stage.name!r} has both a teacher, which would write its rows, and data; keep one"
        yield clash(at, text, "data", "teacher")
    elif stage.teacher is None and stage.data is None:
        text = f"stage {stage.name!r} has nothing to learn from; write teacher (a stage that answers prompts) or data (existing rows)"
        yield Finding(at, text, ((*at, "data"), (*at, "teacher")))
    elif stage.teacher is not None and stage.prompts is None:
        text = f"the teacher of stage {stage.name!r} has no prompts to answer; write prompts: ..."
        yield Finding((*at, "teacher"), text, ((*at, "prompts"),))
    elif stage.data is not None:
        for name in ("prompts", "rewards"):
            if getattr(stage, name):
                text = f"{name} need a teacher, and this stage learns from data; delete {name}"
                yield clash(at, text, name, "data")
