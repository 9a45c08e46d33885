"""Supervised fine-tuning on rows of prompt and completion: only what the model should say is learned, rows are packed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from grpo.config import DistillStage, SftStage, SupervisedKeys, Validation, kept_alive
from grpo.data.conversations import imitated, mended_in_words
from grpo.data.prompt_order import Shuffled, taken
from grpo.data.sft_batches import Replay, course_of
from grpo.errors import DataError
from grpo.evaluation.validation import Watchman, hold_back
from grpo.resources.checkpointing import Keeper
from grpo.resources.context import Workplace
from grpo.run.records import JsonLines
from grpo.trainer.batch import Batch, make_batch
from grpo.trainer.policy_trainer import TrainerSpec
from grpo.types import Checkpoint

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Tokenised:
    """Rows that fit max_tokens, with their tokens and which of the completions' are learned, and how many did not."""

    rows: list[Mapping[str, Any]]
    prompts: list[Sequence[int]]
    completions: list[Sequence[int]]
    learned: list[Sequence[bool]]
    num_too_long: int

    def __len__(self) -> int:
        return len(self.rows)

    def without(self, left_out: set[int]) -> Tokenised:
        kept = [i for i in range(len(self)) if i not in left_out]
        rows, prompts, completions, learned = (
            [column[i] for i in kept]  # type: ignore[index]
            for column in (self.rows, self.prompts, self.completions, self.learned)
        )
        return Tokenised(rows, prompts, completions, learned, self.num_too_long)  # type: ignore[arg-type]

    def batch(self, chosen: Sequence[int], replayed: Tokenised | None = None, replayed_rows: Sequence[int] = ()) -> Batch:
        """One optimizer batch of these rows, and of ``replayed`` those."""
        parts = [(self, chosen), *([(replayed, replayed_rows)] if replayed is not None else [])]
        prompts = [of.prompts[i] for of, rows in parts for i in rows]
        completions = [of.completions[i] for of, rows in parts for i in rows]
        learned = [of.learned[i] for of, rows in parts for i in rows]
        return make_batch(prompts, completions, trainable=learned).with_weights("token_mean", max_tokens=1)


def fine_tune(
    rows: Rows, start: Checkpoint, settings: SupervisedKeys, seed: int, work: Workplace, folder: Path, earlier: Rows = ()
) -> dict[str, float]:
    """Train ``start`` on ``rows`` for the stage's epochs or phases and save it to folder/model. Returns the last update's metrics.

    The end token is part of the completion, so that the model learns to stop. Rows over max_tokens are left out and counted. ``earlier`` are
    rows of earlier stages, for replay and ewc.
    """
    fitting = tokenised(rows, start, settings, work)
    work.record_rows(
        folder.name, len(fitting), {f"over max_tokens {settings.max_tokens}": fitting.num_too_long} if fitting.num_too_long else {}
    )
    taught, held_back = _held_back(fitting, settings.validation, seed)
    before = tokenised(earlier, start, settings, work) if earlier else None
    course = course_of(settings, taught.rows, seed)
    replay = Replay(len(before), settings.replay, seed) if before is not None and settings.replay else None
    spec = TrainerSpec(start.path, settings, len(course), num_threads=work.num_threads, seed=seed, layout=work.recipe.trainer)
    metrics: dict[str, float] = {}
    with work.trainer(spec) as trainer, JsonLines(folder / "metrics.jsonl") as metrics_file:
        if settings.ewc is not None and before is not None:
            measured = taken(Shuffled(len(before), seed, "ewc-"), 0, min(settings.ewc.rows, len(before)))
            trainer.hold_weights(before.batch(measured), settings.ewc.coef)  # before resuming: the anchor is where the stage starts
        keeper = Keeper(settings, len(course), trainer, work, folder, [metrics_file])
        watchman = Watchman(settings.validation, held_back, keeper, work, start)
        saved = keeper.resume("update")
        if saved is not None:
            metrics = dict(saved.state["metrics"])
            watchman.go_on(saved.state)
        for update in range(saved.step if saved else 0, len(course)):
            lesson = course[update]
            replayed = replay.beside(lesson) if replay is not None else []
            batch = taught.batch(lesson.rows, before, replayed)
            with keeper.step(update + 1) as end:
                learned = trainer.supervised_update(batch, lesson.rate * watchman.standing.rate, lesson.weight_decay)
                counts = {"data/rows_too_long": taught.num_too_long} | ({"data/replayed_rows": len(replayed)} if replay else {})
                metrics = {**learned, **watchman.after(update + 1, end), **lesson.place, **counts}
                metrics_file.write({"step": update + 1, **metrics})
                end.state = partial(_state, metrics, watchman, update + 1)
                work.progress.step(update + 1, len(course), metrics)
                work.trackers.step(folder.name, update + 1, metrics)
        trainer.save(folder / "model")
    told = {name: value for name, value in metrics.items() if name.startswith("validation/")}
    counts = {"data/rows": len(taught), "data/rows_too_long": taught.num_too_long, "data/updates": len(course)}
    return {"last/loss": metrics["loss/total"], **told, **counts}


def _held_back(rows: Tokenised, validation: Validation | None, seed: int) -> tuple[Tokenised, Batch | None]:
    """What is left to learn, and what is held back to take the loss on, if anything."""
    if validation is None or validation.by != "loss":
        return rows, None
    chosen = hold_back(rows.prompts, validation.rows, seed)
    if len(chosen) == len(rows):
        raise DataError(f"validation holds {len(chosen)} of {len(rows)} rows back, and none is left to learn; lower validation.rows")
    return rows.without(chosen), rows.batch(sorted(chosen))


def earlier_rows(stage: SftStage | DistillStage, work: Workplace) -> Rows:
    """The rows that the stage replays, or holds its weights for; none where it does neither."""
    return [row for other in kept_alive(work.recipe, stage) if other.data is not None for row in work.rows(other.data)]


def _state(metrics: Mapping[str, float], watchman: Watchman, update: int) -> dict[str, Any]:
    return {"metrics": metrics, **watchman.state(update)}


def tokenised(rows: Rows, start: Checkpoint, settings: SupervisedKeys, work: Workplace) -> Tokenised:
    """The rows in tokens; what is left out of them or mended is said and counted. Raises DataError where one does not fit the template, or
    none fits max_tokens."""
    tokenizer = work.tokenizer(start.path)
    found = Tokenised([], [], [], [], 0)
    mended: Counter[str] = Counter()
    num_long = 0
    for row in rows:
        example = imitated(row, work.template, tokenizer)
        mended.update(example.mended)
        if example.num_tokens > settings.max_tokens:
            num_long += 1
            continue
        found.rows.append(row)
        found.prompts.append(example.prompt)
        found.completions.append(example.completion)
        found.learned.append(example.learned)
    if not found.rows:
        raise DataError(f"none of {len(rows)} rows fits max_tokens = {settings.max_tokens}; raise it")
    _check_positions(found, work.positions(start.path))
    if num_long:
        work.progress.say(f"  {num_long} of {len(rows)} rows are longer than max_tokens = {settings.max_tokens} and left out")
    for line in mended_in_words(mended):
        work.progress.say(f"  {line}")
    return replace(found, num_too_long=num_long)


def _check_positions(rows: Tokenised, positions: int | None) -> None:
    lengths = [len(prompt) + len(completion) for prompt, completion in zip(rows.prompts, rows.completions, strict=True)]
    if positions is not None and max(lengths) > positions:
        num_beyond = sum(length > positions for length in lengths)
        raise DataError(
            f"{num_beyond} of {len(rows)} rows are longer than the model's {positions:,} positions, the longest {max(lengths):,} tokens; "
            f"set max_tokens: {positions}, which leaves them out, or take a model with longer context"
        )
