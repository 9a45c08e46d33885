"""Supervised fine-tuning on rows of prompt and completion: only the completion is learned, rows are packed."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from grpo.config import SupervisedKeys
from grpo.errors import DataError
from grpo.policy.batch import make_batch
from grpo.policy.trainer import TrainerSpec
from grpo.run.records import JsonLines
from grpo.stages.keeping import Keeper
from grpo.stages.workplace import Workplace
from grpo.types import Checkpoint


def fine_tune(
    rows: Sequence[dict[str, Any]], start: Checkpoint, settings: SupervisedKeys, seed: int, work: Workplace, folder: Path
) -> dict[str, float]:
    """Train ``start`` on ``rows`` for settings.epochs and save it to folder/model. Returns the last update's metrics.

    The end token is part of the completion, so that the model learns to stop. Each epoch has an order of its own, that follows from the seed;
    the last update of an epoch may hold fewer sequences. Rows over max_tokens are left out and counted.
    """
    prompts, completions, num_too_long = _tokenised(rows, start, settings, work)
    per_epoch = math.ceil(len(prompts) / settings.sequences_per_update)
    total = per_epoch * settings.epochs
    spec = TrainerSpec(start.path, settings, total, num_threads=work.num_threads, seed=seed, layout=work.recipe.trainer)
    metrics: dict[str, float] = {}
    with work.trainer(spec) as trainer, JsonLines(folder / "metrics.jsonl") as metrics_file:
        keeper = Keeper(settings, total, trainer, work, folder, [metrics_file])
        saved = keeper.resume("update")
        metrics = dict(saved.state["metrics"]) if saved else {}
        for update in range(saved.step if saved else 0, total):
            epoch, position = divmod(update, per_epoch)
            chosen = _shuffled(len(prompts), seed, epoch)[position * settings.sequences_per_update :][: settings.sequences_per_update]
            batch = make_batch([prompts[i] for i in chosen], [completions[i] for i in chosen]).with_weights("token_mean", max_tokens=1)
            with keeper.step(update + 1) as end:
                metrics = {**trainer.supervised_update(batch), "data/epoch": epoch + 1, "data/rows_too_long": num_too_long}
                metrics_file.write({"step": update + 1, **metrics})
                end.state = partial(dict, metrics=metrics)
            work.progress.step(update + 1, total, metrics)
            work.trackers.step(folder.name, update + 1, metrics)
        trainer.save(folder / "model")
    return {"last/loss": metrics["loss/total"], "data/rows": len(prompts), "data/rows_too_long": num_too_long, "data/updates": total}


def _tokenised(
    rows: Sequence[dict[str, Any]], start: Checkpoint, settings: SupervisedKeys, work: Workplace
) -> tuple[list[Any], list[Any], int]:
    tokenizer = work.tokenizer(start.path)
    if tokenizer.eos_token_id is None:
        raise DataError(f"the tokenizer of {start.path} has no end token, so a model trained with it would never stop; set eos_token there")
    prompts, completions, num_too_long = [], [], 0
    for index, row in enumerate(rows):
        missing = [column for column in ("prompt", "completion") if not row.get(column)]
        if missing:
            raise DataError(f"row {index}: column {missing[0]!r} not found or empty; found {sorted(row)}")
        prompt = work.template.prompt(row, str(index), tokenizer)
        completion = (*tokenizer.encode(row["completion"], add_special_tokens=False), tokenizer.eos_token_id)
        if len(prompt.tokens) + len(completion) > settings.max_tokens:
            num_too_long += 1
        else:
            prompts.append(prompt.tokens)
            completions.append(completion)
    if not prompts:
        raise DataError(f"none of {len(rows)} rows fits max_tokens = {settings.max_tokens}; raise it")
    return prompts, completions, num_too_long


def _shuffled(num_rows: int, seed: int, epoch: int) -> list[int]:
    order = list(range(num_rows))
    random.Random(f"sft-{seed}-{epoch}").shuffle(order)
    return order
