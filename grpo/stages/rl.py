"""Group-relative policy optimisation: sample groups, score them, update on their advantages, hand the new weights to the engines."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from grpo.algorithm import Algorithm, load_algorithm
from grpo.config import Recipe, RewardUse, RlStage
from grpo.data.prompt_order import prompt_order, taken, too_few
from grpo.errors import TrainingError
from grpo.evaluation import measure as evaluation
from grpo.resources.checkpointing import Keeper
from grpo.resources.context import Outcome, Workplace, seed_of, updates_of
from grpo.resources.scoring import group_advantages, has_signal, is_judged, score_groups, weights_at
from grpo.rl.dynamic_sampling import Refilled, refill
from grpo.rl.prefetch import Ahead, Drawn, Meanwhile, as_json, drawn_from_json
from grpo.rl.step_metrics import Clock, group_metrics, metrics_by_source, over_updates, reward_failures, reward_latency, sample_rows
from grpo.run.monitor import Measured, Watch
from grpo.run.records import JsonLines, read_jsonl_rows
from grpo.trainer.batch import Batch, batch_of_groups
from grpo.trainer.policy_trainer import TrainerSpec
from grpo.trainer.remote import RemoteTrainer
from grpo.types import Checkpoint, Group
from rewards import RewardRuntime
from rollout.memory import bytes_of_process
from rollout.pool import RolloutPool
from rollout.types import Completion, Prompt, SamplingParams

# Single steps of a SmolLM2 that is sure of itself reach 0.036 in bfloat16, and its first gap is 0.011.
MIN_GAP_BOUND = {"float32": 0.01, "bfloat16": 0.05}
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
    prompts = work.prompts(stage.prompts, work.tokenizer(start.path), stage.max_prompt_tokens, is_endless=True)
    if prompts.num_too_long:
        work.progress.say(f"  left out {prompts.num_too_long} prompts longer than max_prompt_tokens = {stage.max_prompt_tokens}")
    if warning := too_few(stage, len(prompts.prompts)):
        work.progress.say(f"  {warning}")
    with work.rewards(stage.rewards) as rewards:
        work.try_rewards(rewards, prompts.prompts)
        before = evaluation.measure_checkpoint(work, start)
        began = None if before is None else Measured(before.accuracy, before.accuracy_se, 0)
        metrics = _train(stage, work, folder, algorithm, start, rewards, prompts.prompts, began)
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
    began: Measured | None,
) -> dict[str, float]:
    """All steps. Returns the last one's metrics."""
    spec = TrainerSpec(
        start.path, stage, updates_of(stage), algorithm, sampling_params(stage), work.num_threads, seed_of(stage, work), work.recipe.trainer
    )
    with (
        work.trainer(spec) as trainer,
        JsonLines(folder / "metrics.jsonl") as metrics_file,
        JsonLines(folder / "samples.jsonl") as samples_file,
        JsonLines(folder / "alarms.jsonl") as alarms_file,
    ):
        keeper = Keeper(stage, stage.steps, trainer, work, folder, [metrics_file, samples_file, alarms_file])
        loop = RlLoop(stage, work, folder, algorithm, start, trainer, work.pool(start), rewards, prompts, keeper.finish)
        watch = watch_over(rewards, stage.rewards, began)
        saved = keeper.resume("step")
        if saved is None:
            loop.prove_sync()
            first, kept, metrics = 0, [], {}
        else:
            loop.go_on(saved.step, saved.state["loop"])
            first, kept, metrics = saved.step, drawn_from_json(saved.state["ahead"]), dict(saved.state["metrics"])
            watch.catch_up(read_jsonl_rows(metrics_file.path))
        with loop.drawing(first, kept):
            for step in range(first, stage.steps):
                with keeper.step(step + 1) as end:
                    metrics, rows = loop.step(step)
                    metrics_file.write({"step": step + 1, **metrics})
                    samples_file.write_all(rows)
                    for alarm in watch.step(step + 1, metrics):
                        alarms_file.write(vars(alarm))
                        work.progress.say(f"  alarm, step {step + 1}: {alarm.text}")
                    end.state = partial(loop.state, step, metrics)
                    work.progress.step(step + 1, stage.steps, metrics)
                    work.trackers.step(folder.name, step + 1, metrics, rows)
        trainer.save(folder / "model")
    return metrics


def sampling_params(stage: RlStage) -> SamplingParams:
    """What the engine samples with, and what the trainer takes its temperature from."""
    return SamplingParams(stage.max_completion_tokens, stage.temperature, stage.top_p, stage.top_k, stage.min_p, tuple(stage.stop))


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


def asks_for_form(stage: RlStage, recipe: Recipe) -> bool:
    """Whether anything looks for the tags: without, every completion would count as badly formed."""
    evaluated = recipe.evaluation is not None and recipe.evaluation.well_formed is not None
    return evaluated or any(use.use == "format" for use in stage.rewards)


class RlLoop:
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
        finish_checkpoint: Callable[[], None] = lambda: None,
    ):
        self.stage, self.work, self.folder, self.algorithm, self.start = stage, work, folder, algorithm, start
        self.trainer, self.pool, self.rewards, self.prompts = trainer, pool, rewards, prompts
        self.finish_checkpoint = finish_checkpoint
        self.seed = seed_of(stage, work)
        self.tags = work.recipe.tags if asks_for_form(stage, work.recipe) else None
        self.sampling = sampling_params(stage)
        self.max_logprob_gap = float("inf")
        self.num_updates = 0
        self.order = prompt_order(stage, prompts, self.seed)
        self.position = 0  # in the order: prompts consumed so far
        self.errors_said: set[str] = set()
        self.warned_of_equal_groups = False
        self.warned_of_gap = False
        self.weights: dict[str, float] = {}

    def drawing(self, first: int = 0, kept: Sequence[Drawn] = ()) -> Ahead:
        """The thread that draws the samples of all steps from ``first`` on, by the engines' weights and newer ones; steps are made ``with`` it."""
        rollout = self.work.recipe.rollout
        self.version = self.pool.version
        self.ahead = Ahead(
            self.pool,
            self.draw,
            range(first, self.stage.steps),
            max_staleness=rollout.max_staleness,
            is_deterministic=self.work.recipe.deterministic,
            in_flight=rollout.weight_change == "in_flight",
            kept=kept,
        )
        return self.ahead

    def step(self, step: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """One rollout and its updates. Returns the step's metrics and its samples as rows."""
        stage, clock = self.stage, Clock()
        with clock("rollout"):
            drawn = self.ahead.result(step)
        chosen = self.prompts_of(step)
        self.position += len(chosen)
        staleness = self.version - drawn.oldest_version
        with clock("checkpoint"):
            self.finish_checkpoint()  # the trainer wrote it while samples were drawn
        with clock("reward"):
            self.weights = self.weights_of(step)
            groups = score_groups(self.rewards, chosen, drawn.completions, self.weights)
            self.say_new_reward_errors()
        refilled = self.refilled(groups, step, clock)
        groups = refilled.groups
        self.work.progress.doing(f"step {step + 1}: updating the policy")
        with clock("update"):
            advantages_PG = self.advantages(groups)
            bound = self.max_logprob_gap if staleness == 0 else float("inf")  # older weights differ from the trainer's by what was learned
            updates = [self.update(batch, bound) for batch in self.minibatches(groups, advantages_PG, step, bound)]
        evaluates = stage.eval_every is not None and (step + 1) % stage.eval_every == 0
        self.version += 1
        with clock("sync"):
            posted = self.ahead.post(self.export, self.version, self.evaluate if evaluates else None)
            if evaluates or not self.work.recipe.rollout.max_staleness:
                posted.receipts.result()
        metrics = {
            **group_metrics(groups, advantages_PG, self.tags),
            **metrics_by_source(groups),
            **(refilled.metrics() if stage.dynamic_sampling else {}),
            **over_updates(updates),
            **reward_failures(self.rewards),
            **reward_latency(self.rewards),
            **{f"reward/{use.part}_weight": self.weights.get(use.part, 0.0) for use in stage.rewards if use.is_scheduled},
            "rollout/tokens_per_s": drawn.tokens_per_s,
            "sync/version": self.version,
            "rollout/staleness": staleness,
            "rollout/changed_in_flight_frac": drawn.changed_in_flight_frac,
            "rollout/workers_lost": self.pool.num_lost,
            **self.memory(),
        }
        if evaluates:
            with clock("eval"):
                metrics |= posted.found.result()
        unused = sample_rows(refilled.replaced, np.zeros((len(refilled.replaced), stage.samples_per_prompt)), step)
        return {**metrics, **clock.metrics()}, [*sample_rows(groups, advantages_PG, step), *({**row, "replaced": True} for row in unused)]

    def memory(self) -> dict[str, float]:
        """Main memory that the driver, the first trainer rank and the largest worker take; of a GPU what the trainer took at most."""
        held: dict[str, int] = {"driver": bytes_of_process(), **self.trainer.memory_bytes()}
        if self.pool.memory_bytes is not None:
            held["engine"] = self.pool.memory_bytes
        return {f"memory/{name}_gib": size / 2**30 for name, size in held.items()}

    def weights_of(self, step: int) -> dict[str, float]:
        """The rewards' weights in a step: those of the update that it begins with, whatever else has happened in the run."""
        updates = self.stage.updates_per_rollout
        for use in self.stage.rewards:
            weight = use.weight_at(step * updates)
            if use.is_scheduled and (step == 0 or weight != use.weight_at((step - 1) * updates)):
                how = f"has weight {weight:g}" if weight else "has weight 0 and is not run"
                self.work.progress.say(f"  from step {step + 1} on: reward {use.part!r} {how}")
        return weights_at(self.stage.rewards, step * updates)

    def prompts_of(self, step: int) -> list[Prompt]:
        """Those that the step begins with. Replaced groups move on in the order, and then no later step is drawn ahead."""
        first = self.position if self.stage.dynamic_sampling else step * self.stage.prompts_per_step
        return self.prompts_at(first, self.stage.prompts_per_step)

    def prompts_at(self, position: int, count: int) -> list[Prompt]:
        return [self.prompts[i] for i in taken(self.order, position, count)]

    def refilled(self, groups: list[Group], step: int, clock: Clock) -> Refilled:
        """The step's groups, those of equal rewards replaced where the stage asks for it."""
        if self.stage.dynamic_sampling is None:
            return Refilled(groups, [], self.position, 0, 0)

        def draw(prompts: Sequence[Prompt]) -> list[Group]:
            with clock("rollout"):
                completions = self.sample(prompts, step, lambda: None)
            with clock("reward"):
                return score_groups(self.rewards, prompts, completions, self.weights)

        is_equal = lambda group: not has_signal(self.algorithm, group, self.weights)  # noqa: E731
        refilled = refill(groups, self.prompts_at, draw, is_equal, self.position, self.stage.dynamic_sampling.max_rounds)
        self.position = refilled.position
        if (warning := refilled.warning()) and not self.warned_of_equal_groups:
            self.work.progress.say(f"  step {step + 1}: {warning} (rollout/groups_unfilled counts them; said once)")
            self.warned_of_equal_groups = True
        return refilled

    def draw(self, step: int, meanwhile: Meanwhile) -> list[list[Completion]]:
        return self.sample(self.prompts_of(step), step, meanwhile)

    def sample(self, prompts: Sequence[Prompt], step: int, meanwhile: Meanwhile) -> list[list[Completion]]:
        def progress(done: int, total: int) -> None:
            self.work.progress.doing(f"step {step + 1}: drawn {done}/{total} samples")
            meanwhile()

        return self.pool.sample(
            prompts,
            self.stage.samples_per_prompt,
            self.sampling,
            seed=self.seed,
            step=step,
            deadline_s=self.work.recipe.rollout.deadline_s,
            progress=progress,
        )

    def export(self) -> Any:
        return self.trainer.export(self.version, self.work.recipe.rollout.dtype)

    def minibatches(self, groups: Sequence[Group], advantages_PG: np.ndarray, step: int, max_logprob_gap: float) -> Iterator[Batch]:
        """The step's optimizer batches: whole groups, shuffled, in updates_per_rollout equal parts, old log-probabilities fixed for all.

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
        """[P, G]. A divergence that belongs to the reward is summed over each sample."""
        divergence_PG = None
        if self.algorithm.kl_coef > 0 and self.algorithm.kl_in == "reward":
            batch = batch_of_groups(groups, np.zeros((len(groups), len(groups[0].samples))).tolist())
            divergence_PG = np.zeros((len(groups), len(groups[0].samples)))
            divergence_PG[is_judged(groups)] = self.trainer.sequence_divergence(batch)
        return group_advantages(self.algorithm, groups, self.weights, divergence_PG)

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
        """One optimizer step. A batch whose gradient was not finite is kept beside the metrics, to be looked into."""
        metrics = self.trainer.policy_update(batch, max_logprob_gap)
        if metrics["train/skipped_updates"]:
            why = "no token of its samples counts" if metrics["train/empty_updates"] else "its gradient is not finite"
            self.work.progress.say(f"  update {self.num_updates + 1} skipped: {why}")
            if not metrics["train/empty_updates"]:
                folder = self.folder / "skipped"
                folder.mkdir(exist_ok=True)
                np.savez_compressed(folder / f"update-{self.num_updates + 1}.npz", **vars(batch))
        gap = metrics.get("rollout/logprob_gap", 0.0)
        if gap > max_logprob_gap / 2 and not self.warned_of_gap:
            self.work.progress.say(
                f"  update {self.num_updates + 1}: engine and trainer drift apart: mean |log-prob difference| {gap:.4f} a token; the run stops above "
                f"{max_logprob_gap:.4f} (rollout/logprob_gap; said once)"
            )
            self.warned_of_gap = True
        return metrics

    def say_new_reward_errors(self) -> None:
        for name in self.rewards.first_error.keys() - self.errors_said:
            self.work.progress.say(f"  {self.rewards.first_error[name]}")
            self.errors_said.add(name)

    def first_reward_error(self) -> str:
        return "".join(f"; {text}" for text in self.rewards.first_error.values())

    def state(self, step: int, metrics: Mapping[str, float]) -> dict[str, Any]:
        """What a checkpoint must hold after ``step``. Prompts, seeds and versions follow from its number."""
        return {
            "metrics": metrics,
            "score": metrics.get("eval/accuracy"),
            "loop": {
                "num_updates": self.num_updates,
                "position": self.position,
                "sync": self.pool.mode,
                "max_logprob_gap": self.max_logprob_gap,
            },
            "ahead": as_json(self.ahead.drawn_by_older_weights(step)),
        }

    def go_on(self, step: int, state: Mapping[str, Any]) -> None:
        """As after ``step`` steps: the engines hold the trainer's weights, proven, and what the self-test found stands."""
        self.num_updates, self.position, self.pool.mode = state["num_updates"], state["position"], state["sync"]
        bound = float("inf") if state["max_logprob_gap"] is None else state["max_logprob_gap"]
        self.max_logprob_gap = max(bound, self.gap_bound(0.0))  # which may be of an earlier version, with a lower floor
        self.pool.sync(lambda: self.trainer.export(step, self.work.recipe.rollout.dtype), step)

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
        if (transport := self.work.recipe.rollout.transport) != "host":
            self.work.progress.doing(f"testing the way of the weights: {transport}")
            self.pool.sync(lambda: self.trainer.export(self.pool.version, self.work.recipe.rollout.dtype), self.pool.version)
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
        self.max_logprob_gap = self.gap_bound(gap)
        self.work.progress.say(
            f"  engine against trainer: mean |log-prob difference| {gap:.4f} a token; the run stops above {self.max_logprob_gap:.4f}"
        )

    def gap_bound(self, first: float) -> float:
        return gap_bound(first, self.work.recipe.rollout.dtype, self.work.recipe.trainer.precision)

    def evaluate(self, meanwhile: Meanwhile) -> dict[str, float]:
        settings = self.work.recipe.evaluation
        if settings is None:
            return {}
        scores = evaluation.measure(self.work, self.pool, self.start, settings, None, meanwhile)
        return {**scores.metrics(), "eval/accuracy_se": scores.accuracy_se, "eval/lenient_se": scores.lenient_se}


def gap_bound(first: float, *dtypes: str) -> float:
    """How large the mean |log-prob difference| by token may become, which was ``first`` before any update, where products are made in ``dtypes``.

    Rounding makes more of it in some steps than in others: an update looks at groups of unequal rewards only, which are a model's least certain.
    """
    return max(*(MIN_GAP_BOUND[dtype] for dtype in dtypes), GAP_BOUND_FACTOR * first)


def _probe_batch(prompts: Sequence[Prompt], completions: Sequence[Sequence[Any]]) -> Batch:
    from grpo.trainer.batch import make_batch

    flat = [(i, prompt, completion) for i, (prompt, drawn) in enumerate(zip(prompts, completions, strict=True)) for completion in drawn]
    return make_batch(
        [prompt.tokens for _, prompt, _ in flat],
        [completion.tokens for _, _, completion in flat],
        group=[i for i, _, _ in flat],
        sampled_logprobs=[completion.logprobs for _, _, completion in flat],
    )


def watch_over(rewards: RewardRuntime, uses: Sequence[RewardUse], began: Measured | None = None) -> Watch:
    """A watch that tells rules from models, and leaves out rewards that never weigh anything."""
    paid = [use.part for use in uses if use.weight]
    models = [name for name in paid if rewards.rewards[name].options.by_model]
    return Watch([name for name in paid if name not in models], models, rewards.accuracy, began)
