"""Which settings, each right by itself, cannot be right together? Every check gives the reason and a remedy."""

from __future__ import annotations

from collections.abc import Iterator

from grpo import config
from grpo.config import (
    SOURCE_KEYS,
    DataSource,
    DistillStage,
    Evaluation,
    MadeModel,
    PretrainedModel,
    Recipe,
    RejectStage,
    RewardUse,
    RlStage,
)
from grpo.problems import Finding, Keys, listed, suggestion


def contradictions(recipe: Recipe) -> Iterator[Finding]:
    """The contradictions within one recipe, in its order."""
    yield from _model(recipe.model, ("model",))
    if recipe.tags.think == recipe.tags.answer:
        yield _clash(("tags",), "thinking and answer have the same tag, so they could not be told apart; rename one", "think", "answer")
    for name, source in recipe.data.items():
        yield from _source(name, source)
    if recipe.evaluation:
        yield from _evaluation(recipe.evaluation, ("evaluation",))
    if recipe.rollout.engine == "scripted" and not recipe.rollout.script:
        yield _clash(("rollout",), "the scripted engine needs a script: ./file.py:name", "engine", "script")
    if recipe.rollout.engine != "scripted" and recipe.rollout.script:
        text = f"script is for engine: scripted, and the engine is {recipe.rollout.engine}; change the engine or delete script"
        yield _clash(("rollout",), text, "script", "engine")
    if recipe.rollout.min_workers > recipe.rollout.workers:
        text = f"min_workers {recipe.rollout.min_workers} is more than workers {recipe.rollout.workers}, so the run would stop at once; lower it"
        yield _clash(("rollout",), text, "min_workers", "workers")
    if recipe.trainer.shard != "none" and recipe.trainer.ranks == 1:
        text = f"shard: {recipe.trainer.shard} shares out what several ranks hold, and there is one; raise ranks or delete shard"
        yield _clash(("trainer",), text, "shard", "ranks")
    if recipe.hardware.gpus and recipe.hardware.gpu_memory_gib is None:
        text = f"hardware says {recipe.hardware.gpus} GPUs and not how much memory each has; write gpu_memory_gib"
        yield _clash(("hardware",), text, "gpus", "gpu_memory_gib")
    for index, stage in enumerate(recipe.stages):
        at: Keys = ("stages", index)
        if isinstance(stage, config.Optimiser):
            yield from _optimiser(stage, at)
        if isinstance(stage, config.SftStage | DistillStage) and stage.max_tokens > (stage.tokens_per_device or stage.max_tokens):
            text = f"max_tokens {stage.max_tokens} is more than tokens_per_device {stage.tokens_per_device}: the longest row would not fit "
            yield _clash(at, f"{text}one forward pass; raise tokens_per_device or lower max_tokens", "max_tokens", "tokens_per_device")
        if isinstance(stage, RlStage):
            yield from _rl(stage, at, has_evaluation=recipe.evaluation is not None)
        if isinstance(stage, RlStage | RejectStage | DistillStage):
            yield from _reward_names(stage.rewards, at)
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


def part_name(use: RewardUse) -> str:
    """How metrics and keep.min_reward call a reward: its name, or that of its function."""
    return use.name or use.use.rpartition(":")[2]


def _clash(at: Keys, text: str, *names: str) -> Finding:
    """A finding at the first of the settings ``names`` that stand at ``at``, relying on all of them."""
    return Finding((*at, names[0]), text, tuple((*at, name) for name in names[1:]))


def _model(model: str | MadeModel | PretrainedModel, at: Keys) -> Iterator[Finding]:
    if isinstance(model, MadeModel) and model.hidden_size % model.heads:
        text = f"hidden_size {model.hidden_size} cannot be shared out among {model.heads} heads; make it a multiple"
        yield _clash(at, text, "hidden_size", "heads")


def _source(name: str, source: DataSource) -> Iterator[Finding]:
    named = [key for key in SOURCE_KEYS if getattr(source, key)]
    if not named:
        yield Finding(("data", name), f"data source {name!r} does not say where its rows come from; write one of {listed(SOURCE_KEYS)}")
    if len(named) > 1:
        text = f"data source {name!r} names {len(named)} sources, {listed(named)}; keep one"
        yield Finding(("data", name, named[1]), text, tuple(("data", name, key) for key in named))
    if source.settings and named and not {"reasoning_gym", "generator"} & set(named):
        text = f"settings are for the sources reasoning_gym and generator; data source {name!r} is a {named[0]}: delete them"
        yield Finding(("data", name, "settings"), text, (("data", name),))


def _evaluation(evaluation: Evaluation, at: Keys) -> Iterator[Finding]:
    most = max(evaluation.pass_at, default=1)
    if most > evaluation.samples_per_prompt:
        text = f"pass@{most} cannot be told from {evaluation.samples_per_prompt} samples a prompt; raise samples_per_prompt to {most}"
        yield _clash(at, text, "pass_at", "samples_per_prompt")


def _optimiser(stage: config.Optimiser, at: Keys) -> Iterator[Finding]:
    if stage.min_learning_rate > stage.learning_rate:
        text = f"min_learning_rate {stage.min_learning_rate:g} is above learning_rate {stage.learning_rate:g}; swap or lower it"
        yield _clash(at, text, "min_learning_rate", "learning_rate")


def _rl(stage: RlStage, at: Keys, has_evaluation: bool) -> Iterator[Finding]:
    updates = stage.steps * stage.updates_per_rollout
    if stage.warmup_updates > updates:
        text = f"warmup_updates {stage.warmup_updates} is more than the stage's {updates} updates (steps x updates_per_rollout), so that "
        remedy = f"learning_rate would never be reached; lower it to {updates // 10} or so"
        yield _clash(at, text + remedy, "warmup_updates", "steps", "updates_per_rollout")
    if stage.prompts_per_step % stage.updates_per_rollout:
        text = f"{stage.prompts_per_step} prompts cannot be shared out equally among {stage.updates_per_rollout} updates"
        yield _clash(at, f"{text}; make prompts_per_step a multiple of updates_per_rollout", "prompts_per_step", "updates_per_rollout")
    tokens = stage.max_prompt_tokens + stage.max_completion_tokens
    if tokens > (stage.tokens_per_device or tokens):
        text = f"max_prompt_tokens + max_completion_tokens = {tokens} is more than tokens_per_device {stage.tokens_per_device}: "
        remedy = f"the longest sample would not fit one forward pass; raise tokens_per_device to {tokens} or lower the others"
        yield _clash(at, text + remedy, "max_completion_tokens", "max_prompt_tokens", "tokens_per_device")
    if stage.lora is not None and stage.refresh_reference_every is not None:
        text = "with lora the reference is the weights below the adapters, which never change, so it cannot be refreshed"
        yield _clash(at, f"{text}; delete refresh_reference_every or lora", "refresh_reference_every", "lora")
    if stage.kl_in == "reward" and stage.kl_coef == 0:
        text = "kl_in: reward takes kl_coef times the divergence from the reward, and kl_coef is 0"
        yield _clash(at, f"{text}; write a kl_coef above 0 or delete kl_in", "kl_in", "kl_coef")
    if stage.importance == "none" and stage.importance_cap is not None:
        text = f"importance_cap {stage.importance_cap:g} cuts weights that importance: none does not make; delete one of them"
        yield _clash(at, text, "importance_cap", "importance")
    if stage.clip_low is not None and stage.clip_low > 1:
        text = f"clip_low {stage.clip_low:g} puts the lower bound of the ratio at {1 - stage.clip_low:g}, where no ratio can be"
        yield _clash(at, f"{text}; write a number from 0 to 1 (1 leaves that side unclipped)", "clip_low")
    for name, is_on in (("top_p", stage.top_p < 1), ("top_k", stage.top_k > 0)):
        if is_on:
            text = f"{name} {getattr(stage, name)} draws from a cut distribution, but the trainer computes probabilities of the whole one"
            yield _clash(at, f"{text}, so every ratio would be wrong; delete it (it is fine in reject and evaluation)", name)
    if all(use.weight == 0 for use in stage.rewards):
        yield Finding((*at, "rewards"), "all rewards have weight 0, so every advantage would be 0; give one a weight")
    if stage.eval_every and not has_evaluation:
        text = "eval_every needs a held-out set: write evaluation: {prompts: ...} in the recipe"
        yield Finding((*at, "eval_every"), text, (("evaluation",),))


def _reward_names(rewards: list[RewardUse], at: Keys) -> Iterator[Finding]:
    names = [part_name(use) for use in rewards]
    for index, name in enumerate(names):
        first = names.index(name)
        if first < index:
            keys = tuple((*at, "rewards", other, key) for other in (first, index) for key in ("use", "name"))
            yield Finding((*at, "rewards", index), f"two rewards are called {name!r}; give one another name: ...", keys)


def _keep(stage: RejectStage | DistillStage, at: Keys) -> Iterator[Finding]:
    names = [part_name(use) for use in stage.rewards]
    for name in stage.keep.min_reward:
        if name not in names:
            by_default = "" if "min_reward" in stage.keep.model_fields_set else " (the default)"
            text = f"keep.min_reward asks for {name!r}{by_default}, which is not among the stage's rewards {listed(names)}"
            remedy = suggestion(name, names) or "; add it to them, or write min_reward: {...} with one that is"
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
        text = f"stage {stage.name!r} has both a teacher, who would write its rows, and data, which are rows already written; keep one"
        yield _clash(at, text, "data", "teacher")
    elif stage.teacher is None and stage.data is None:
        text = f"stage {stage.name!r} has nothing to learn from: write teacher: (a stage, to answer prompts) or data: (rows already there)"
        yield Finding(at, text, ((*at, "data"), (*at, "teacher")))
    elif stage.teacher is not None and stage.prompts is None:
        text = f"the teacher of stage {stage.name!r} has no prompts to answer; write prompts: ..."
        yield Finding((*at, "teacher"), text, ((*at, "prompts"),))
    elif stage.data is not None:
        for name in ("prompts", "rewards"):
            if getattr(stage, name):
                text = f"{name} are for a teacher's answers, and the rows of data: are already written; delete {name}"
                yield _clash(at, text, name, "data")
