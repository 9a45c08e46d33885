"""Group-relative policy optimisation: sample groups, score them, update on their advantages, hand the new weights to the engines."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from grpo.algorithm import Algorithm, load_algorithm
from grpo.config import RlStage
from grpo.data.order import indices_of_step
from grpo.errors import TrainingError
from grpo.policy.batch import Batch, batch_of_groups
from grpo.policy.remote import RemoteTrainer
from grpo.policy.trainer import TrainerSpec
from grpo.run.records import JsonLines
from grpo.stages import eval as evaluation
from grpo.stages.scoring import score_groups
from grpo.stages.workplace import Outcome, Workplace, updates_of
from grpo.types import Checkpoint, Group
from rewards import RewardRuntime
from rewards.extract import answer_text, think_text
from rollout.pool import RolloutPool
from rollout.types import Prompt, Sampling

MIN_GAP_BOUND = 0.01
GAP_BOUND_FACTOR = 3.0
PROBE_PROMPTS, PROBE_SAMPLES = 16, 2


def run(stage: RlStage, work: Workplace, folder: Path) -> Outcome:
    """Train the policy for ``stage.steps`` steps; a step is one rollout and all the updates made from it."""
    algorithm = algorithm_of(stage, work.base)
    start = work.checkpoint(stage.from_)
    before = evaluation.measure_checkpoint(work, start)
    spec = TrainerSpec(start.path, stage, updates_of(stage), algorithm, stage.temperature, work.num_threads)
    with (
        work.trainer(spec) as trainer,
        work.rewards(stage.rewards) as rewards,
        JsonLines(folder / "metrics.jsonl") as metrics_file,
        JsonLines(folder / "samples.jsonl") as samples_file,
    ):
        prompts = work.prompts(stage.prompts, work.tokenizer(start.path), stage.max_prompt_tokens)
        if prompts.num_too_long:
            work.progress.say(f"  left out {prompts.num_too_long} prompts longer than max_prompt_tokens = {stage.max_prompt_tokens}")
        loop = _Loop(stage, work, algorithm, start, trainer, work.pool(start), rewards, prompts.prompts)
        loop.prove_sync()
        for step in range(stage.steps):
            metrics, rows = loop.step(step)
            metrics_file.write({"step": step + 1, **metrics})
            samples_file.write_all(rows)
            work.progress.step(step + 1, stage.steps, metrics)
        trainer.save(folder / "model")
    made = Checkpoint(folder / "model")
    work.artifacts[stage.name] = made
    after = evaluation.measure_checkpoint(work, made)
    scores = evaluation.summary(after, before) if after is not None else {}
    return Outcome(made, {**scores, **{f"last/{name}": value for name, value in metrics.items() if not name.startswith("eval/")}})


def algorithm_of(stage: RlStage, base: Path) -> Algorithm:
    """The named row, with what the recipe sets differently."""
    changes = {key: getattr(stage, key) for key in ("kl_coef", "clip_low", "clip_high") if getattr(stage, key) is not None}
    return replace(load_algorithm(stage.algorithm, base), **changes)


class _Loop:
    """The parts that a step works with."""

    def __init__(
        self,
        stage: RlStage,
        work: Workplace,
        algorithm: Algorithm,
        start: Checkpoint,
        trainer: RemoteTrainer,
        pool: RolloutPool,
        rewards: RewardRuntime,
        prompts: Sequence[Prompt],
    ):
        self.stage, self.work, self.algorithm, self.start = stage, work, algorithm, start
        self.trainer, self.pool, self.rewards, self.prompts = trainer, pool, rewards, prompts
        self.seed = work.recipe.seed if stage.seed is None else stage.seed
        self.sampling = Sampling(stage.max_completion_tokens, stage.temperature, stage.top_p, stage.top_k, stop=tuple(stage.stop))
        self.max_logprob_gap = float("inf")
        self.num_updates = 0

    def step(self, step: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """One rollout and its updates. Returns the step's metrics and its samples as rows."""
        stage, clock = self.stage, _Clock()
        chosen = [self.prompts[i] for i in indices_of_step(len(self.prompts), stage.prompts_per_step, step, self.seed)]
        with clock("rollout"):
            completions = self.pool.sample(
                chosen,
                stage.samples_per_prompt,
                self.sampling,
                seed=self.seed,
                step=step,
                deadline_s=self.work.recipe.rollout.deadline_s,
                progress=lambda done, total: self.work.progress.doing(f"step {step + 1}/{stage.steps}: {done}/{total} samples"),
            )
        with clock("reward"):
            groups = score_groups(self.rewards, chosen, completions)
        advantages_PG = group_advantages(self.algorithm, groups)
        with clock("update"):
            updates = [self.trainer.policy_update(batch, self.max_logprob_gap) for batch in self.minibatches(groups, advantages_PG, step)]
        with clock("sync"):
            version = self.pool.version + 1
            receipts = self.pool.sync(lambda: self.trainer.export(version, self.work.recipe.rollout.dtype), version)
        metrics = {
            **_group_metrics(self.work, groups, advantages_PG),
            **_mean_of(updates),
            **_reward_failures(self.rewards),
            "rollout/tokens_per_s": sum(len(s.completion.tokens) for g in groups for s in g.samples) / clock.seconds["rollout"],
            "sync/version": version,
            "sync/tensors": receipts[0].num_tensors,
        }
        if stage.eval_every and (step + 1) % stage.eval_every == 0:
            with clock("eval"):
                metrics |= self.evaluate()
        return {**metrics, **clock.metrics()}, _rows(groups, advantages_PG, step)

    def minibatches(self, groups: Sequence[Group], advantages_PG: np.ndarray, step: int) -> Iterator[Batch]:
        """The step's optimiser batches: whole groups, shuffled, in updates_per_rollout equal parts, old log-probabilities fixed for all.

        R1 shuffles samples; we shuffle groups, so that a prompt is computed once for all its samples.
        """
        order = list(range(len(groups)))
        parts = self.stage.updates_per_rollout
        if parts > 1:
            random.Random(f"minibatches-{self.seed}-{step}").shuffle(order)
        batches = []
        for part in range(parts):
            members = order[part::parts]
            batch = batch_of_groups([groups[i] for i in members], advantages_PG[members].tolist())
            if len(batch):
                batches.append(batch.with_weights(self.algorithm.aggregate, self.stage.max_completion_tokens))
        if not batches:
            raise TrainingError(f"step {step + 1}: no sample could be judged; see reward/* in metrics.jsonl")
        if parts > 1:
            batches = [self.trainer.with_old_logprobs(batch, self.max_logprob_gap) for batch in batches]
        for batch in batches:
            if self.stage.refresh_reference_every and self.num_updates and self.num_updates % self.stage.refresh_reference_every == 0:
                self.trainer.refresh_reference()
            yield batch
            self.num_updates += 1

    def prove_sync(self) -> None:
        """Before the first step: test in-place syncing, measure a fresh engine's gap, and set the bound that every step must keep.

        Both are skipped for the scripted engine, whose completions no model wrote.
        """
        if self.work.recipe.rollout.engine == "scripted":
            return
        wanted = self.work.recipe.rollout.sync
        self.work.progress.doing("testing that weights can be replaced in place")
        probes = list(self.prompts[:PROBE_PROMPTS])
        if wanted == "auto":
            proof = self.pool.prove_reload(probes)
            how = "in place" if proof.in_place else "by rebuilding the engine"
            self.work.progress.say(f"  weight sync: {how} ({proof.why})")
        else:
            self.pool.mode = wanted
            self.work.progress.say(f"  weight sync: {wanted}, as rollout.sync says; not tested")
        completions = self.pool.sample(
            probes,
            PROBE_SAMPLES,
            self.sampling,
            seed=self.seed,
            step=-1,
            deadline_s=self.work.recipe.rollout.deadline_s,
            progress=lambda *_: None,
        )
        gap = self.trainer.logprob_gap(_probe_batch(probes, completions))
        self.max_logprob_gap = max(MIN_GAP_BOUND, GAP_BOUND_FACTOR * gap)
        self.work.progress.say(
            f"  engine against trainer: mean |log-prob difference| {gap:.4f} a token; the run stops above {self.max_logprob_gap:.4f}"
        )

    def evaluate(self) -> dict[str, float]:
        settings = self.work.recipe.evaluation
        if settings is None:
            return {}
        scores = evaluation.measure(self.work, self.pool, self.start, settings, None)
        return {**scores.metrics(), "eval/accuracy_se": scores.accuracy_se, "eval/lenient_se": scores.lenient_se}


def group_advantages(algorithm: Algorithm, groups: Sequence[Group]) -> np.ndarray:
    """[P, G]: the algorithm's advantage of each sample; 0 for samples without a reward, which no batch will hold."""
    rewards_PG = torch.tensor(
        [[float("nan") if s.reward is None else s.reward for s in group.samples] for group in groups], dtype=torch.float64
    )
    return algorithm.advantage(rewards_PG.nan_to_num(0.0), ~rewards_PG.isnan()).numpy()


def _probe_batch(prompts: Sequence[Prompt], completions: Sequence[Sequence[Any]]) -> Batch:
    from grpo.policy.batch import make_batch

    flat = [(i, prompt, completion) for i, (prompt, drawn) in enumerate(zip(prompts, completions, strict=True)) for completion in drawn]
    return make_batch(
        [prompt.tokens for _, prompt, _ in flat],
        [completion.tokens for _, _, completion in flat],
        group=[i for i, _, _ in flat],
        sampled_logprobs=[completion.logprobs for _, _, completion in flat],
    )


def _group_metrics(work: Workplace, groups: Sequence[Group], advantages_PG: np.ndarray) -> dict[str, float]:
    samples = [sample for group in groups for sample in group.samples]
    judged = [sample.reward for sample in samples if sample.reward is not None]
    tags = work.recipe.tags
    formed = [
        think_text(s.completion.text, group.prompt.prefill, tags.think) is not None
        and answer_text(s.completion.text, tags.answer) is not None
        for group in groups
        for s in group.samples
    ]
    metrics = {
        "reward/total": float(np.mean(judged)) if judged else float("nan"),
        "reward/total_std": float(np.std(judged)) if judged else float("nan"),
        "reward/unjudged": float(len(samples) - len(judged)),
        "reward/equal_groups_frac": float((advantages_PG == 0).all(axis=1).mean()),
        "rollout/completion_tokens": float(np.mean([len(sample.completion.tokens) for sample in samples])),
        "rollout/truncated_frac": float(np.mean([sample.completion.finish == "length" for sample in samples])),
        "rollout/well_formed_frac": float(np.mean(formed)),
    }
    for name in samples[0].parts:
        known = [value for sample in samples if (value := sample.parts[name]) is not None]
        metrics[f"reward/{name}"] = float(np.mean(known)) if known else float("nan")
    return metrics


def _reward_failures(rewards: RewardRuntime) -> dict[str, float]:
    """How often each reward failed or abstained in this step; only what happened."""
    counts: Counter[str] = Counter()
    for name, kinds in rewards.counts.items():
        for kind, number in kinds.items():
            if number:
                counts[f"reward/{name}_{kind}"] = number
    return {name: float(number) for name, number in counts.items()}


def _rows(groups: Sequence[Group], advantages_PG: np.ndarray, step: int) -> list[dict[str, Any]]:
    return [
        {
            "step": step + 1,
            "prompt_id": group.prompt.id,
            "prompt": group.prompt.columns["prompt"],
            "answer": group.prompt.columns.get("answer"),
            "text": sample.completion.text,
            "finish": sample.completion.finish,
            "completion_tokens": len(sample.completion.tokens),
            "reward": sample.reward,
            "parts": dict(sample.parts),
            "advantage": float(advantage),
            "version": sample.completion.version,
        }
        for group, advantages_G in zip(groups, advantages_PG, strict=True)
        for sample, advantage in zip(group.samples, advantages_G, strict=True)
    ]


def _mean_of(updates: Sequence[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for update in updates for name in update)
    return {name: float(np.nanmean([update[name] for update in updates if name in update])) for name in names}


class _Clock:
    """Where the time of a step goes: ``with clock("update"): ...``, then time/update_s."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.monotonic()
        self._name = ""

    def __call__(self, name: str) -> _Clock:
        self._name = name
        return self

    def __enter__(self) -> None:
        self._entered = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.seconds[self._name] = time.monotonic() - self._entered

    def metrics(self) -> dict[str, float]:
        return {**{f"time/{name}_s": seconds for name, seconds in self.seconds.items()}, "time/step_s": time.monotonic() - self._began}
