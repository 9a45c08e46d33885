"""Measures a model on held-out problems: samples them, and grades the samples by the same rewards that training uses."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from grpo.config import Evaluation
from grpo.evaluation.scores import Scores, pass_at_gaps, scores_of
from grpo.resources.scoring import score_inputs
from grpo.resources.services import Services
from grpo.run.records import JsonLines, write_json
from grpo.types import Checkpoint
from grpo.util.storage import file_digest
from rewards import RewardRuntime, ScoreInput
from rewards.rules.extract import answer_text, last_number
from rewards.rules.numbers import plain_number, same_number
from rollout.pool import RolloutPool
from rollout.types import Completion, Prompt, SamplingParams


def measure_checkpoint(services: Services, model: Checkpoint) -> Scores | None:
    """The recipe's evaluation of ``model``, kept in DIR/evals so that the model two stages start from is measured once."""
    settings = services.context.recipe.evaluation
    if settings is None:
        return None
    kept = services.context.folder / "evals" / f"{_name_of(services, model)}.json"
    items = kept.with_suffix(".items.jsonl")
    measured = _identity(services, model, settings)
    if kept.exists():
        found = json.loads(kept.read_text(encoding="utf-8"))
        if found.pop("measured", None) == measured:
            return Scores(**found)
    items.unlink(missing_ok=True)
    scores = measure(services, services.engines.pool(model), model, settings, items)
    write_json(kept, {**vars(scores), "measured": measured})
    return scores


def _identity(services: Services, model: Checkpoint, settings: Evaluation) -> str:
    """A hash of all that a score follows from: weights, problems and their answers, template, graders, settings, engine."""
    import xxhash

    digest = xxhash.xxh3_128()
    for file in sorted(model.path.glob("*.safetensors")):
        digest.update(file_digest(file).encode())
    recipe = services.context.recipe
    graders = [use.use.rpartition(":")[0] for use in (settings.accuracy, settings.well_formed, settings.lenient) if use is not None]
    files = {name: services.context.base / name for name in (*graders, recipe.template, (recipe.rollout.script or "").rpartition(":")[0])}
    code = {name: file_digest(file) for name, file in files.items() if file.is_file()}
    rollout = recipe.rollout.model_dump(mode="json", include={"engine", "dtype", "script"})
    template = [recipe.template, recipe.template_options, recipe.tags.model_dump()]
    told = [settings.model_dump(mode="json"), services.prompts.rows(settings.prompts), *template, rollout, code]
    digest.update(json.dumps(told, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def measure(
    services: Services,
    pool: RolloutPool,
    model: Checkpoint,
    settings: Evaluation,
    items_path: Path | None,
    poll: Callable[[], None] = lambda: None,
) -> Scores:
    """Sample with the engine's current weights and grade. ``model`` gives the tokenizer; ``poll`` is called now and then, and may raise."""

    def progress(done: int, total: int) -> None:
        services.context.progress.doing(f"evaluating: {done}/{total} samples")
        poll()

    tokenizer = services.prompts.tokenizer(model.path)
    room = services.engines.prompt_limit(settings, model)
    prompt_set = services.prompts.prompts(settings.prompts, tokenizer, room, limit=settings.rows, called="evaluation.max_prompt_tokens")
    if prompt_set.num_too_long:
        stated = settings.max_prompt_tokens
        limit = f"max_prompt_tokens = {stated}" if stated is not None else "the model has room for beside a completion"
        number = f"{prompt_set.num_too_long} of {prompt_set.num_too_long + len(prompt_set.prompts)}"
        services.context.progress.say(f"  evaluation: {number} problems are longer than {limit} and left out")
    prompts = prompt_set.prompts
    sampling = SamplingParams(settings.max_completion_tokens, settings.temperature, settings.top_p, min_p=settings.min_p)
    services.context.progress.doing(f"evaluating on {len(prompts)} problems")
    completions = pool.sample(
        prompts,
        settings.samples_per_prompt,
        sampling,
        seed=settings.seed,
        step=0,
        deadline_s=services.context.recipe.rollout.deadline_s,
        progress=progress,
    )
    items = grade(services, settings, prompts, completions)
    if items_path is not None:
        with JsonLines(items_path) as file:
            file.write_all(items)
    for line in pass_at_gaps(items, settings):
        services.context.progress.say(f"  {line}")
    return replace(scores_of(items, settings), num_too_long=prompt_set.num_too_long)


def grade(
    services: Services, settings: Evaluation, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]]
) -> list[dict[str, Any]]:
    """One item a sample: what was asked, what was said, how it was judged (None: nobody could)."""
    uses = {"accuracy": settings.accuracy, "lenient": settings.lenient}
    if settings.well_formed is not None:
        uses["well_formed"] = settings.well_formed
    named = [use.model_copy(update={"name": name, "required": False}) for name, use in uses.items()]
    inputs = score_inputs(prompts, completions)
    with services.context.rewards(named) as runtime:
        scored = runtime.score(inputs)
        votes = votes_of(runtime, inputs, [judged.parts["accuracy"] for judged in scored], services.context.recipe.tags.answer)
    flat = [(prompt, completion) for prompt, samples in zip(prompts, completions, strict=True) for completion in samples]
    items = []
    for (prompt, completion), judged, vote in zip(flat, scored, votes, strict=True):
        parts = judged.parts
        form = parts.get("well_formed", 1.0)
        right = None if parts["accuracy"] is None or form is None else float(parts["accuracy"] == 1.0 and form == 1.0)
        items.append(
            {
                "prompt_id": prompt.id,
                "question": prompt.columns["prompt"],
                "answer": prompt.columns.get("answer"),
                "text": completion.text,
                "finish": completion.finish,
                "completion_tokens": completion.num_tokens,
                "said": vote,
                "accuracy": right,
                "lenient": parts["lenient"],
                "well_formed": form,
            }
        )
    return items


def votes_of(runtime: RewardRuntime, inputs: Sequence[ScoreInput], scores: Sequence[float | None], answer_tag: str) -> list[str | None]:
    """What each sample votes for in maj@k: its answer as the accuracy reward reads it, in the words of the first equal one of its problem.

    Answers that are right are equal to the gold answer, and so to each other. Wrong ones are compared as plain numbers, and what is more than
    that by the reward itself, in its processes, with one sample's answer as the other's gold answer.
    """
    reward = runtime.rewards["accuracy"]
    said, gold = reward.options.said, reward.options.gold
    votes: list[str | None] = []
    waiting: dict[Hashable, list[int]] = {}
    for index, sample in enumerate(inputs):
        text = sample.columns["completion"]
        found = said(text, sample.columns["prefill"], **reward.settings) if said else answer_text(text, answer_tag) or last_number(text)
        votes.append(found)
        if found is not None:
            waiting.setdefault(sample.group, []).append(index)

    def is_same(one: int, other: int) -> bool:
        if scores[one] == 1 or scores[other] == 1:
            return scores[one] == scores[other]
        return votes[one] == votes[other] or same_number(plain_number(votes[one] or ""), plain_number(votes[other] or ""))

    while waiting := {group: indices for group, indices in waiting.items() if indices}:
        pairs = []
        for group, (leader, *others) in waiting.items():
            equal = [index for index in others if is_same(leader, index)]
            for index in equal:
                votes[index] = votes[leader]
            rest = [index for index in others if index not in equal]
            waiting[group] = rest
            if said and gold and scores[leader] != 1:
                pairs += [(group, leader, index) for index in rest if scores[index] != 1 and not _are_numbers(votes[leader], votes[index])]
        asked = [ScoreInput({**inputs[index].columns, gold: votes[leader]}, group) for group, leader, index in pairs if gold]
        judged = runtime.score(asked, {"accuracy": 1.0}) if asked else []
        for (group, leader, index), verdict in zip(pairs, judged, strict=True):
            if verdict.parts["accuracy"] == 1:
                votes[index] = votes[leader]
                waiting[group].remove(index)
    return votes


def _are_numbers(*answers: str | None) -> bool:
    return all(plain_number(answer or "") is not None for answer in answers)


def _name_of(services: Services, model: Checkpoint) -> str:
    return next(name for name, artifact in services.context.artifacts.items() if artifact == model)
