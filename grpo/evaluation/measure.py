"""How good is a model on the held-out set? avg@n with standard error, pass@k, maj@k, by the same graders that training uses."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from grpo.algorithm.statistics import majority_score, mean_and_standard_error, pass_at_k
from grpo.config import EvalStage, Evaluation
from grpo.errors import TrainingError
from grpo.resources.context import Outcome, Workplace
from grpo.run.records import JsonLines, read_jsonl_rows, write_json
from grpo.types import Checkpoint
from grpo.util.storage import file_digest
from rewards import RewardRuntime, ScoreInput
from rewards.rules.extract import answer_text, last_number
from rewards.rules.numbers import plain_number, same_number
from rollout.pool import RolloutPool
from rollout.types import Completion, Prompt, SamplingParams


@dataclass(frozen=True)
class Scores:
    """Of one model on one set of problems. ``accuracy``: right and well-formed; ``lenient``: right, whatever the form."""

    accuracy: float
    accuracy_se: float
    lenient: float
    lenient_se: float
    well_formed: float
    truncated_frac: float
    completion_tokens: float
    num_problems: int
    num_unjudged: int
    pass_at: Mapping[str, float]
    majority: float
    num_too_long: int = 0

    def metrics(self, suffix: str = "") -> dict[str, float]:
        """As metric names: eval/accuracy{suffix}, ..."""
        return {
            f"eval/accuracy{suffix}": self.accuracy,
            f"eval/lenient{suffix}": self.lenient,
            f"eval/well_formed{suffix}": self.well_formed,
            f"eval/completion_tokens{suffix}": self.completion_tokens,
            f"eval/truncated_frac{suffix}": self.truncated_frac,
        }


def run(stage: EvalStage, work: Workplace, folder: Path) -> Outcome:
    """Measure a model; its per-item results go to items.jsonl."""
    settings = stage.evaluation or work.recipe.evaluation
    assert settings is not None, "the schema asks an eval stage for an evaluation"
    model = work.checkpoint(stage.from_)
    scores = measure(work, work.pool(model), model, settings, folder / "items.jsonl")
    return Outcome(None, summary(scores))


def summary(scores: Scores, before: Scores | None = None) -> dict[str, float]:
    """What a stage reports of its model, and of the model it started from where there is one."""
    counts = {
        "eval/num_problems": scores.num_problems,
        "eval/num_unjudged": scores.num_unjudged,
        "eval/num_too_long": scores.num_too_long,
    }
    extra = {**{f"eval/{name}": value for name, value in scores.pass_at.items()}, "eval/maj": scores.majority}
    errors = {"eval/accuracy_se": scores.accuracy_se, "eval/lenient_se": scores.lenient_se}
    if before is None:
        return {**scores.metrics(), **errors, **counts, **extra}
    return {**before.metrics("_before"), **scores.metrics("_after"), **errors, **counts, **extra}


def measure_checkpoint(work: Workplace, model: Checkpoint) -> Scores | None:
    """The recipe's evaluation of ``model``, kept in DIR/evals so that the model two stages start from is measured once."""
    settings = work.recipe.evaluation
    if settings is None:
        return None
    kept = work.folder / "evals" / f"{_name_of(work, model)}.json"
    items = kept.with_suffix(".items.jsonl")
    measured = _identity(work, model, settings)
    if kept.exists():
        found = json.loads(kept.read_text(encoding="utf-8"))
        if found.pop("measured", None) == measured:
            return Scores(**found)
    items.unlink(missing_ok=True)
    scores = measure(work, work.pool(model), model, settings, items)
    write_json(kept, {**vars(scores), "measured": measured})
    return scores


def _identity(work: Workplace, model: Checkpoint, settings: Evaluation) -> str:
    """A hash of all that a score follows from: weights, problems and their answers, template, graders, settings, engine."""
    import xxhash

    digest = xxhash.xxh3_128()
    for file in sorted(model.path.glob("*.safetensors")):
        digest.update(file_digest(file).encode())
    recipe = work.recipe
    graders = [use.use.rpartition(":")[0] for use in (settings.accuracy, settings.well_formed, settings.lenient) if use is not None]
    files = {name: work.base / name for name in (*graders, recipe.template, (recipe.rollout.script or "").rpartition(":")[0])}
    code = {name: file_digest(file) for name, file in files.items() if file.is_file()}
    rollout = recipe.rollout.model_dump(mode="json", include={"engine", "dtype", "script"})
    template = [recipe.template, recipe.template_options, recipe.tags.model_dump()]
    told = [settings.model_dump(mode="json"), work.rows(settings.prompts), *template, rollout, code]
    digest.update(json.dumps(told, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def measure(
    work: Workplace,
    pool: RolloutPool,
    model: Checkpoint,
    settings: Evaluation,
    items_path: Path | None,
    meanwhile: Callable[[], None] = lambda: None,
) -> Scores:
    """Sample with the engine's current weights and grade. ``model`` gives the tokenizer; ``meanwhile`` is called now and then, and may raise."""

    def progress(done: int, total: int) -> None:
        work.progress.doing(f"evaluating: {done}/{total} samples")
        meanwhile()

    tokenizer = work.tokenizer(model.path)
    room = work.prompt_limit(settings, model)
    prompt_set = work.prompts(settings.prompts, tokenizer, room, limit=settings.rows, called="evaluation.max_prompt_tokens")
    if prompt_set.num_too_long:
        stated = settings.max_prompt_tokens
        limit = f"max_prompt_tokens = {stated}" if stated is not None else "the model has room for beside a completion"
        number = f"{prompt_set.num_too_long} of {prompt_set.num_too_long + len(prompt_set.prompts)}"
        work.progress.say(f"  evaluation: {number} problems are longer than {limit} and left out")
    prompts = prompt_set.prompts
    sampling = SamplingParams(settings.max_completion_tokens, settings.temperature, settings.top_p, min_p=settings.min_p)
    work.progress.doing(f"evaluating on {len(prompts)} problems")
    completions = pool.sample(
        prompts,
        settings.samples_per_prompt,
        sampling,
        seed=settings.seed,
        step=0,
        deadline_s=work.recipe.rollout.deadline_s,
        progress=progress,
    )
    items = grade(work, settings, prompts, completions)
    if items_path is not None:
        with JsonLines(items_path) as file:
            file.write_all(items)
    for line in pass_at_gaps(items, settings):
        work.progress.say(f"  {line}")
    return replace(scores_of(items, settings), num_too_long=prompt_set.num_too_long)


def pass_at_gaps(items: Sequence[Mapping[str, Any]], settings: Evaluation) -> list[str]:
    """One line for each k for which some problems have fewer than k judged samples, so that pass@k is about the others, or missing."""
    judged = Counter(item["prompt_id"] for item in items if item["accuracy"] is not None and item["lenient"] is not None)
    total = len({item["prompt_id"] for item in items})
    enough = {k: sum(count >= k for count in judged.values()) for k in settings.pass_at}
    return [
        f"evaluation: pass_at_{k} {f'is over {count} of {total} problems' if count else 'is missing'}: "
        f"{'the others have' if count else 'no problem has'} {'fewer than ' if count else ''}{k} judged samples"
        for k, count in enough.items()
        if count < total
    ]


def grade(
    work: Workplace, settings: Evaluation, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]]
) -> list[dict[str, Any]]:
    """One item a sample: what was asked, what was said, how it was judged (None: nobody could)."""
    uses = {"accuracy": settings.accuracy, "lenient": settings.lenient}
    if settings.well_formed is not None:
        uses["well_formed"] = settings.well_formed
    from grpo.resources.scoring import score_inputs

    named = [use.model_copy(update={"name": name, "required": False}) for name, use in uses.items()]
    inputs = score_inputs(prompts, completions)
    with work.rewards(named) as runtime:
        scored = runtime.score(inputs)
        votes = votes_of(runtime, inputs, [judged.parts["accuracy"] for judged in scored], work.recipe.tags.answer)
    flat = [(prompt, completion) for prompt, drawn in zip(prompts, completions, strict=True) for completion in drawn]
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


def scores_of(items: Sequence[Mapping[str, Any]], settings: Evaluation) -> Scores:
    """Scores from items; a sample that nobody could judge is left out and counted, and a set without any judged sample is an error."""
    by_problem: dict[str, list[Mapping[str, Any]]] = {}
    for item in items:
        if item["accuracy"] is not None and item["lenient"] is not None:
            by_problem.setdefault(item["prompt_id"], []).append(item)
    if not by_problem:
        raise TrainingError(f"evaluation: none of {len(items)} samples could be judged; look at the column answer of {settings.prompts!r}")
    problems = list(by_problem.values())
    judged = [item for problem in problems for item in problem]
    accuracy, accuracy_se = mean_and_standard_error([[item["accuracy"] for item in problem] for problem in problems])
    lenient, lenient_se = mean_and_standard_error([[item["lenient"] for item in problem] for problem in problems])
    pass_at = {
        f"pass_at_{k}": _mean([pass_at_k(len(problem), sum(item["accuracy"] == 1.0 for item in problem), k) for problem in enough])
        for k in settings.pass_at
        if (enough := [problem for problem in problems if len(problem) >= k])
    }
    majority = [majority_score([item["said"] for item in problem], [item["accuracy"] for item in problem]) for problem in problems]
    return Scores(
        accuracy,
        accuracy_se,
        lenient,
        lenient_se,
        well_formed=_mean([item["well_formed"] for item in judged]),
        truncated_frac=_mean([float(item["finish"] == "length") for item in judged]),
        completion_tokens=_mean([item["completion_tokens"] for item in judged]),
        num_problems=len(problems),
        num_unjudged=len(items) - len(judged),
        pass_at=pass_at,
        majority=_mean(majority),
    )


def read_items(path: Path) -> list[dict[str, Any]]:
    return read_jsonl_rows(path)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _name_of(work: Workplace, model: Checkpoint) -> str:
    return next(name for name, artifact in work.artifacts.items() if artifact == model)
