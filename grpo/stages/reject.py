"""Rejection sampling: several completions of each prompt, of which the right and readable ones become a dataset."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpo.config import DistillStage, Keep, Mix, RejectStage
from grpo.data.rejection_filter import judge, row_of
from grpo.errors import TrainingError
from grpo.resources.scoring import score_groups
from grpo.resources.services import Services
from grpo.run.records import JsonLines, read_jsonl_rows, write_json
from grpo.stages.base import Outcome
from grpo.types import Dataset, Group
from rollout.types import SamplingParams


def run(stage: RejectStage, services: Services, folder: Path) -> Outcome:
    """Write the kept completions of ``stage.from_``, and the rows mixed in, to folder/data."""
    rows, metrics = collect(stage, stage.from_, services, folder)
    rows += mixed_in(stage.mix, services)
    write_dataset(rows, folder / "data", {"stage": stage.name, "model": stage.from_, "counts": metrics})
    return Outcome(Dataset(folder / "data"), {**metrics, "data/rows": len(rows)})


def collect(
    stage: RejectStage | DistillStage, model_name: str, services: Services, folder: Path
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Sample, score and filter; returns the kept rows and the counts. All samples are written to samples.jsonl, with why they were dropped."""
    assert stage.prompts is not None, "the graph check lets no such recipe through"
    model = services.context.checkpoint(model_name)
    prompt_set = services.prompts.prompts(stage.prompts, services.prompts.tokenizer(model.path), stage.max_prompt_tokens, stage.rows)
    prompts = prompt_set.prompts
    if prompt_set.num_too_long:
        services.context.progress.say(
            f"  left out {prompt_set.num_too_long} prompts longer than max_prompt_tokens = {stage.max_prompt_tokens}"
        )
    with services.context.rewards(stage.rewards) as rewards:
        services.prompts.try_rewards(rewards, prompts)
        completions = services.engines.pool(model).sample(
            prompts,
            stage.samples_per_prompt,
            SamplingParams(stage.max_completion_tokens, stage.temperature, stage.top_p, min_p=stage.min_p),
            seed=services.context.seed_of(stage),
            step=0,
            deadline_s=services.context.recipe.rollout.deadline_s,
            progress=lambda done, total: services.context.progress.doing(f"{done}/{total} samples"),
        )
        groups = score_groups(rewards, prompts, completions)
    judged = judge(groups, stage.keep, services.context.recipe.tags)
    kept = [item for item in judged if item.dropped is None]
    dropped = Counter(item.dropped for item in judged if item.dropped is not None)
    with JsonLines(folder / "samples.jsonl") as samples_file:
        samples_file.write_all({**row_of(item.group, item.sample, stage.name), "dropped": item.dropped} for item in judged)
    if not kept:
        raise TrainingError(
            f"stage {stage.name!r}: none of {len(prompts) * stage.samples_per_prompt} completions was kept; dropped: {dict(dropped)}"
        )
    counts = {f"reject/{reason}": float(number) for reason, number in sorted(dropped.items())}
    prompts_kept = len({item.group.prompt.id for item in kept})
    metrics = {"reject/samples": float(len(judged)), "reject/kept": float(len(kept)), "reject/prompts_kept": float(prompts_kept)}
    rows = [{**row_of(item.group, item.sample, stage.name), "pass_rate": pass_rate(item.group, stage.keep)} for item in kept]
    return rows, {**metrics, **counts}


def pass_rate(group: Group, keep: Keep) -> float | None:
    """Of a prompt's judged samples, the share whose rewards are at least keep.min_reward: how easy the prompt is for this model."""
    judged = [[sample.parts[name] for name in keep.min_reward] for sample in group.samples]
    enough = [
        all(value >= least for value, least in zip(values, keep.min_reward.values(), strict=True) if value is not None)
        for values in judged
        if None not in values
    ]
    return sum(enough) / len(enough) if enough else None


def mixed_in(mixes: list[Mix], services: Services) -> list[dict[str, Any]]:
    return [{**row, "source": mix.use} for mix in mixes for row in services.prompts.rows(mix.use)[: mix.rows]]


def read_dataset(folder: Path) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows and counts as ``write_dataset`` was given them."""
    provenance = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    return read_jsonl_rows(folder / "rows.jsonl"), provenance["counts"]


def write_dataset(rows: list[dict[str, Any]], folder: Path, provenance: Mapping[str, Any]) -> None:
    """rows.jsonl and provenance.json: which model and stage made the rows, and how many were dropped for which reason."""
    (folder / "rows.jsonl").unlink(missing_ok=True)
    with JsonLines(folder / "rows.jsonl") as file:
        file.write_all(rows)
    write_json(folder / "provenance.json", {**provenance, "rows": len(rows)})
