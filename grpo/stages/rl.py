"""Group-relative policy optimisation: sample groups, score them, update on their advantages, hand the new weights to the engines."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from grpo.algorithm import Algorithm, load_algorithm
from grpo.algorithm.advantages import batch_normalised
from grpo.config import RlStage
from grpo.data.order import indices_of_step
from grpo.errors import TrainingError
from grpo.policy.batch import Batch, batch_of_groups
from grpo.policy.remote import RemoteTrainer
from grpo.policy.trainer import TrainerSpec
from grpo.run.records import JsonLines
from grpo.stages import eval as evaluation
from grpo.stages.scoring import score_groups
from grpo.stages.workplace import Outcome, Workplace, seed_of, updates_of
from grpo.types import Checkpoint, Group
from rewards import RewardRuntime
from rewards.extract import answer_text, think_text
from rollout.pool import RolloutPool
from rollout.types import Completion, Prompt, Sampling

MIN_GAP_BOUND = 0.01
GAP_BOUND_FACTOR = 3.0
MAX_FIRST_GAP = 0.15  # SmolLM2 in bfloat16 has 0.04; a layer of stale weights, after one update, as much as this
ALGORITHM_KEYS = ("kl_coef", "kl_in", "clip_low", "clip_high", "importance", "importance_cap", "mask_truncated")
PROBE_PROMPTS, PROBE_SAMPLES = 16, 2


def run(stage: RlStage, work: Workplace, folder: Path) -> Outcome:
    """Train the policy for ``stage.steps`` steps; a step is one rollout and all the updates made from it."""
    algorithm = algorithm_of(stage, work.base)
    start = work.checkpoint(stage.from_)
    for deviation in deviations(stage, load_algorithm(stage.algorithm, work.base)):
        work.progress.say(f"  {stage.algorithm}: {deviation}")
    prompts = work.prompts(stage.prompts, work.tokenizer(start.path), stage.max_prompt_tokens)
    if prompts.num_too_long:
        work.progress.say(f"  left out {prompts.num_too_long} prompts longer than max_prompt_tokens = {stage.max_prompt_tokens}")
    with work.rewards(stage.rewards) as rewards:
        work.try_rewards(rewards, prompts.prompts)
        before = evaluation.measure_checkpoint(work, start)
        metrics = _train(stage, work, folder, algorithm, start, rewards, prompts.prompts)
    made = Checkpoint(folder / "model")
    work.artifacts[stage.name] = made
    after = evaluation.measure_checkpoint(work, made)
    scores = evaluation.summary(after, before) if after is not None else {}
    return Outcome(made, {**scores, **{f"last/{name}": value for name, value in metrics.items() if not name.startswith("eval/")}})


def _train(
    stage: RlStage,
    work: Workplace,
    folder: Path,
    algorithm: Algorithm,
    start: Checkpoint,
    rewards: RewardRuntime,
    prompts: Sequence[Prompt],
) -> dict[str, float]:
    """All steps. Returns the last one's metrics."""
    spec = TrainerSpec(
        start.path, stage, updates_of(stage), algorithm, stage.temperature, work.num_threads, seed_of(stage, work), work.recipe.trainer
    )
    with (
        work.trainer(spec) as trainer,
        JsonLines(folder / "metrics.jsonl") as metrics_file,
        JsonLines(folder / "samples.jsonl") as samples_file,
    ):
        loop = _Loop(stage, work, folder, algorithm, start, trainer, work.pool(start), rewards, prompts)
        loop.prove_sync()
        for step in range(stage.steps):
            metrics, rows = loop.step(step)
            metrics_file.write({"step": step + 1, **metrics})
            samples_file.write_all(rows)
            work.progress.step(step + 1, stage.steps, metrics)
            work.trackers.step(folder.name, step + 1, metrics, rows)
        trainer.save(folder / "model")
    return metrics


def algorithm_of(stage: RlStage, base: Path) -> Algorithm:
    """The named row, with what the recipe sets differently."""
    changes = {key: getattr(stage, key) for key in ALGORITHM_KEYS if getattr(stage, key) is not None}
    if changes.get("importance") == "none":
        changes["importance"] = None
    return replace(load_algorithm(stage.algorithm, base), **changes)


def deviations(stage: RlStage, named: Algorithm) -> list[str]:
    """How a stage's settings differ from those of the row it names, one sentence each."""
    used = {key: getattr(stage, key) for key in (*named.published, *ALGORITHM_KEYS)}
    stated = {**{key: getattr(named, key) for key in ALGORITHM_KEYS}, **named.published}
    found = [f"{key} is {value} instead of {stated[key]}" for key, value in used.items() if value is not None and value != stated[key]]
    if named.published and stage.updates_per_rollout > 1:
        found.append("minibatches shuffle whole groups instead of single samples, so that a prompt is computed once for all of its samples")
    return found


class _Loop:
    """The parts that a step works with."""

    def __init__(
        self,
        stage: RlStage,
        work: Workplace,
        folder: Path,
        algorithm: Algorithm,
        start: Checkpoint,
        trainer: RemoteTrainer,
        pool: RolloutPool,
        rewards: RewardRuntime,
        prompts: Sequence[Prompt],
    ):
        self.stage, self.work, self.folder, self.algorithm, self.start = stage, work, folder, algorithm, start
        self.trainer, self.pool, self.rewards, self.prompts = trainer, pool, rewards, prompts
        self.seed = seed_of(stage, work)
        self.sampling = Sampling(stage.max_completion_tokens, stage.temperature, stage.top_p, stage.top_k, stop=tuple(stage.stop))
        self.max_logprob_gap = float("inf")
        self.num_updates = 0
        self.errors_said: set[str] = set()
        self.ahead = ThreadPoolExecutor(1, thread_name_prefix="rollout-ahead")
        self.drawn_ahead: Future[list[list[Completion]]] | None = None

    def step(self, step: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """One rollout and its updates. Returns the step's metrics and its samples as rows."""
        stage, clock = self.stage, _Clock()
        chosen = self.prompts_of(step)
        with clock("rollout"):
            completions = self.drawn_ahead.result() if self.drawn_ahead else self.draw(chosen, step)
            staleness = self.pool.version - min(completion.version for drawn in completions for completion in drawn)
        self.drawn_ahead = None
        if self.work.recipe.rollout.max_staleness and step + 1 < stage.steps:
            self.drawn_ahead = self.ahead.submit(self.draw, self.prompts_of(step + 1), step + 1)
        with clock("reward"):
            groups = score_groups(self.rewards, chosen, completions)
            self.say_new_reward_errors()
        with clock("update"):
            advantages_PG = self.advantages(groups)
            bound = self.max_logprob_gap if staleness == 0 else float("inf")  # older weights differ from the trainer's by what was learned
            updates = [self.update(batch, bound) for batch in self.minibatches(groups, advantages_PG, step, bound)]
        with clock("rollout_ahead"):
            if self.drawn_ahead is not None:
                wait([self.drawn_ahead])
        with clock("sync"):
            version = self.pool.version + 1
            receipts = self.pool.sync(lambda: self.trainer.export(version, self.work.recipe.rollout.dtype), version)
        metrics = {
            **_group_metrics(self.work, groups, advantages_PG),
            **_mean_of(updates),
            **_reward_failures(self.rewards),
            "rollout/tokens_per_s": sum(len(s.completion.tokens) for g in groups for s in g.samples) / clock.seconds["rollout"],
            "sync/version": version,
            "sync/tensors": receipts[0].num_tensors
            if receipts
            else 0,  # none where every worker was replaced, and began with these weights
            "rollout/staleness": staleness,
            "rollout/workers_lost": self.pool.num_lost,
        }
        if stage.eval_every and (step + 1) % stage.eval_every == 0:
            with clock("eval"):
                metrics |= self.evaluate()
        return {**metrics, **clock.metrics()}, _rows(groups, advantages_PG, step)

    def prompts_of(self, step: int) -> list[Prompt]:
        return [self.prompts[i] for i in indices_of_step(len(self.prompts), self.stage.prompts_per_step, step, self.seed)]

    def draw(self, prompts: Sequence[Prompt], step: int) -> list[list[Completion]]:
        return self.pool.sample(
            prompts,
            self.stage.samples_per_prompt,
            self.sampling,
            seed=self.seed,
            step=step,
            deadline_s=self.work.recipe.rollout.deadline_s,
            progress=lambda done, total: self.work.progress.doing(f"step {step + 1}/{self.stage.steps}: {done}/{total} samples"),
        )

    def minibatches(self, groups: Sequence[Group], advantages_PG: np.ndarray, step: int, max_logprob_gap: float) -> Iterator[Batch]:
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
                masked = self.masked(batch, [groups[i] for i in members])
                batches.append(masked.with_weights(self.algorithm.aggregate, self.stage.max_completion_tokens))
        if not batches:
            raise TrainingError(f"step {step + 1}: no sample could be judged{self.first_reward_error()}")
        if parts > 1:
            batches = [self.trainer.with_old_logprobs(batch, max_logprob_gap) for batch in batches]
        for batch in batches:
            if self.stage.refresh_reference_every and self.num_updates and self.num_updates % self.stage.refresh_reference_every == 0:
                self.trainer.refresh_reference()
            yield batch
            self.num_updates += 1

    def advantages(self, groups: Sequence[Group]) -> np.ndarray:
        """[P, G]. A divergence that belongs to the reward is summed over each sample and taken from it first."""
        penalty_PG = None
        if self.algorithm.kl_coef > 0 and self.algorithm.kl_in == "reward":
            batch = batch_of_groups(groups, np.zeros((len(groups), len(groups[0].samples))).tolist())
            divergence_B = self.trainer.sequence_divergence(batch)
            penalty_PG = np.zeros((len(groups), len(groups[0].samples)))
            penalty_PG[_judged(groups)] = self.algorithm.kl_coef * divergence_B
        return group_advantages(self.algorithm, groups, {name: spec.weight for name, spec in self.rewards.specs.items()}, penalty_PG)

    def masked(self, batch: Batch, groups: Sequence[Group]) -> Batch:
        """Without the tokens that the algorithm leaves out: of truncated completions, of groups without advantage."""
        if self.algorithm.mask_truncated:
            finishes = [s.completion.finish for group in groups for s in group.samples if s.reward is not None]
            batch = batch.without_tokens_of(np.array([finish == "length" for finish in finishes]))
        if self.algorithm.mask_equal_groups:
            moved = np.unique(batch.group[batch.advantages != 0])
            batch = batch.without_tokens_of(~np.isin(batch.group, moved))
        return batch

    def update(self, batch: Batch, max_logprob_gap: float) -> dict[str, float]:
        """One optimiser step. A batch whose gradient was not finite is kept beside the metrics, to be looked into."""
        metrics = self.trainer.policy_update(batch, max_logprob_gap)
        if metrics["train/skipped_updates"]:
            why = "no token of its samples counts" if metrics["train/empty_updates"] else "its gradient is not finite"
            self.work.progress.say(f"  update {self.num_updates + 1} skipped: {why}")
            if not metrics["train/empty_updates"]:
                folder = self.folder / "skipped"
                folder.mkdir(exist_ok=True)
                np.savez_compressed(folder / f"update-{self.num_updates + 1}.npz", **vars(batch))
        return metrics

    def say_new_reward_errors(self) -> None:
        for name in self.rewards.first_error.keys() - self.errors_said:
            self.work.progress.say(f"  {self.rewards.first_error[name]}")
            self.errors_said.add(name)

    def first_reward_error(self) -> str:
        return "".join(f"; {text}" for text in self.rewards.first_error.values())

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
        if not gap <= MAX_FIRST_GAP:
            raise TrainingError(
                f"engine and trainer disagree before the first step: the mean |log-prob difference| is {gap:.4f} a token, and rounding makes at "
                f"most {MAX_FIRST_GAP}; the engine computes something else with this model: try another dtype, or another version of it"
            )
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


def group_advantages(
    algorithm: Algorithm, groups: Sequence[Group], weights: Mapping[str, float], penalty_PG: np.ndarray | None = None
) -> np.ndarray:
    """[P, G]: the algorithm's advantage of each sample; 0 for samples without a reward, which no batch will hold.

    ``weights`` are the rewards' by name; ``penalty_PG`` is taken from the sum of a sample's rewards.
    """
    judged_PG = torch.from_numpy(_judged(groups))

    def advantage(values: Sequence[Sequence[float | None]]) -> torch.Tensor:
        values_PG = torch.tensor([[float("nan") if v is None else v for v in row] for row in values], dtype=torch.float64)
        return algorithm.advantage(values_PG.nan_to_num(0.0), judged_PG & ~values_PG.isnan())

    if algorithm.per_reward:
        advantages_PG = sum(
            (weight * advantage([[s.parts[name] for s in group.samples] for group in groups]) for name, weight in weights.items()),
            torch.zeros(judged_PG.shape, dtype=torch.float64),
        )
        if penalty_PG is not None:
            advantages_PG = advantages_PG + advantage((-penalty_PG).tolist())
    else:
        penalty = np.zeros(judged_PG.shape) if penalty_PG is None else penalty_PG
        rewards = [
            [None if s.reward is None else s.reward - taken for s, taken in zip(group.samples, row, strict=True)]
            for group, row in zip(groups, penalty.tolist(), strict=True)
        ]
        advantages_PG = advantage(rewards)
    if algorithm.batch_normalise:
        advantages_PG = batch_normalised(advantages_PG, judged_PG)
    return advantages_PG.numpy()


def _judged(groups: Sequence[Group]) -> np.ndarray:
    return np.array([[sample.reward is not None for sample in group.samples] for group in groups])


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
