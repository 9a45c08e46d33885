"""How much is there to compute in a stage? Sequences to draw, tokens to train on, and the arithmetic of both, from shapes and lengths."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from grpo.config import AnyStage, DistillStage, EvalStage, Evaluation, Recipe, RejectStage, RlStage, SftStage, source_names
from grpo.errors import RecipeError
from grpo.plan.architecture import Architecture, models_drawn_from


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of a prompt and of a completion that times are reckoned with; None for as long as the recipe lets them be."""

    prompt: int | None = None
    completion: int | None = None


def lengths_from(text: str | None) -> Lengths:
    """From "48/36". Raises RecipeError where it is something else."""
    if text is None:
        return Lengths()
    parts = text.split("/")
    if len(parts) != 2 or not all(part.isdigit() and int(part) for part in parts):
        raise RecipeError(f"--lengths {text}: expected mean tokens of prompts and completions, such as 48/36")
    return Lengths(*map(int, parts))


@dataclass(frozen=True)
class Drawing:
    """Sequences that engines draw. ``longest``: tokens of the longest completion, for so many steps an engine goes on."""

    what: str
    times: int
    sequences: float
    samples_per_prompt: int
    prompt: int
    completion: int
    longest: int
    model: Architecture


@dataclass(frozen=True)
class Training:
    """Updates on trees of one prompt and its completions. ``forwards``: passes through the model, a way back counted as two."""

    updates: int
    prompts: float
    samples_per_prompt: int
    prompt: int
    completion: int
    forwards: float
    model: Architecture

    @property
    def tokens(self) -> float:
        """Of one update; a prompt is computed once for its completions."""
        return self.prompts * (self.prompt + self.samples_per_prompt * self.completion)

    @property
    def flops(self) -> float:
        return self.products + self.attention

    @property
    def products(self) -> float:
        """Operations of one update with weights: 2 a weight and token; logits of completions only."""
        config = self.model.config
        assert config is not None
        head = config["vocab_size"] * config["hidden_size"]
        body = self.model.parameters - (1 if config.get("tie_word_embeddings") else 2) * head
        return self.forwards * 2 * (body * self.tokens + head * self.prompts * self.samples_per_prompt * self.completion)

    @property
    def attention(self) -> float:
        """Operations of one update among tokens: 4 x width a layer, token and token seen."""
        own = self.completion
        seen = self.prompt**2 / 2 + self.samples_per_prompt * own * (self.prompt + own / 2)
        return self.forwards * 4 * self.model.attention_width * self.model.layers * self.prompts * seen


def drawings(
    stage: AnyStage, recipe: Recipe, known: Mapping[str, Architecture], rows: Mapping[str, int], lengths: Lengths
) -> Iterator[Drawing]:
    """``rows``: how many each source has, where that is known. Raises KeyError with the name of a source whose rows are not."""
    if isinstance(stage, RlStage):
        size = (stage.prompts_per_step * stage.samples_per_prompt, stage.samples_per_prompt)
        yield Drawing("rollout", stage.steps, *size, *_of(stage, lengths), stage.max_completion_tokens, known[stage.name])
    if isinstance(stage, RejectStage) or (isinstance(stage, DistillStage) and stage.teacher is not None):
        prompts = stage.rows or sum(rows[name] for name in source_names(stage.prompts))
        model = models_drawn_from(stage, recipe, known)[0]
        size = (prompts * stage.samples_per_prompt, stage.samples_per_prompt)
        yield Drawing("sampling", 1, *size, *_of(stage, lengths), stage.max_completion_tokens, model)
    evaluation = (stage.evaluation if isinstance(stage, EvalStage) else None) or recipe.evaluation
    if evaluation is not None and not isinstance(stage, RejectStage):
        yield _evaluation(stage, evaluation, known[stage.name], rows, lengths)


def training_of(
    stage: AnyStage, known: Mapping[str, Architecture], has_reference: bool, rows: Mapping[str, int], lengths: Lengths
) -> Training | None:
    """The same for updates; None for a stage without any."""
    way_back = 1 if getattr(stage, "lora", None) else 2  # frozen weights have no gradient of their own
    again = 1 if getattr(stage, "gradient_checkpointing", False) else 0
    if isinstance(stage, RlStage):
        several = stage.updates_per_rollout > 1  # log-probabilities before the first update are then computed apart
        forwards = 1 + way_back + again + has_reference + several
        prompts = stage.prompts_per_step / stage.updates_per_rollout
        updates = stage.steps * stage.updates_per_rollout
        return Training(updates, prompts, stage.samples_per_prompt, *_of(stage, lengths), forwards, known[stage.name])
    if isinstance(stage, SftStage | DistillStage):
        number = rows_of_supervised(stage, rows)
        completion = min(lengths.completion or stage.max_tokens, stage.max_tokens)
        prompt = lengths.prompt or 0
        sequences = _sequences(stage, number) / (1 - stage.replay)
        return Training(stage.num_updates(number), sequences, 1, prompt, completion, 1 + way_back + again, known[stage.name])
    return None


def _sequences(stage: SftStage | DistillStage, rows: int) -> float:
    """Of an update, on average."""
    if stage.curriculum is None:
        return min(stage.batch_size, rows)
    phases = stage.curriculum.phases
    return sum(phase.updates * (phase.batch_size or stage.batch_size) for phase in phases) / stage.num_updates(rows)


def rows_of_supervised(stage: SftStage | DistillStage, rows: Mapping[str, int]) -> int:
    """Rows that a stage learns from; what a teacher writes, at most. Raises KeyError where that is not known."""
    if isinstance(stage, DistillStage) and stage.teacher is not None:
        prompts = stage.rows or sum(rows[name] for name in source_names(stage.prompts))
        return prompts * min(stage.keep.per_prompt, stage.samples_per_prompt)
    return sum(rows[name] for name in source_names(stage.data))


def rows_made(stage: RejectStage, rows: Mapping[str, int]) -> int:
    """At most. Raises KeyError where that is not known."""
    prompts = stage.rows or sum(rows[name] for name in source_names(stage.prompts))
    mixed = sum(min(rows[mix.use], mix.rows or rows[mix.use]) for mix in stage.mix)
    return prompts * min(stage.keep.per_prompt, stage.samples_per_prompt) + mixed


def _evaluation(stage: AnyStage, settings: Evaluation, model: Architecture, rows: Mapping[str, int], lengths: Lengths) -> Drawing:
    times = 1 if isinstance(stage, EvalStage) else 2  # before and after
    if isinstance(stage, RlStage) and stage.eval_every:
        times += stage.steps // stage.eval_every
    if isinstance(stage, SftStage | DistillStage) and stage.validation is not None and stage.validation.by == "accuracy":
        with contextlib.suppress(KeyError):
            times += math.ceil(stage.num_updates(rows_of_supervised(stage, rows)) / stage.validation.every)
    problems = min(settings.rows, rows.get(settings.prompts, settings.rows)) if settings.rows else rows[settings.prompts]
    completion = min(lengths.completion or settings.max_completion_tokens, settings.max_completion_tokens)
    sequences = problems * settings.samples_per_prompt
    longest = settings.max_completion_tokens
    return Drawing("evaluation", times, sequences, settings.samples_per_prompt, lengths.prompt or 0, completion, longest, model)


def _of(stage: RlStage | RejectStage | DistillStage, lengths: Lengths) -> tuple[int, int]:
    prompt = min(lengths.prompt or stage.max_prompt_tokens, stage.max_prompt_tokens)
    return prompt, min(lengths.completion or stage.max_completion_tokens, stage.max_completion_tokens)
