"""The rl stage: group-relative policy optimization (arXiv:2402.03300) of a model; a step itself is in grpo/rl/loop.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from grpo.algorithm import Algorithm, load_algorithm
from grpo.config import RewardUse, RlStage
from grpo.data.prompt_order import too_few
from grpo.evaluation.measure import measure
from grpo.evaluation.scores import Scores
from grpo.resources.checkpointing import CheckpointSchedule
from grpo.resources.services import Services
from grpo.rl.context import RlContext
from grpo.rl.loop import make_loop
from grpo.rl.prefetch import Poll, rollouts_from_json
from grpo.rl.step_metrics import StepReporter
from grpo.run.monitor import Measured, Watch
from grpo.run.records import JsonLines, read_jsonl_rows
from grpo.stages.base import Outcome, run_model_stage
from grpo.trainer.policy_trainer import TrainerSpec
from grpo.types import Checkpoint
from rewards import RewardRuntime
from rollout.pool import RolloutPool
from rollout.types import Prompt

ALGORITHM_KEYS = ("kl_coef", "kl_in", "clip_low", "clip_high", "importance", "importance_cap", "mask_truncated")


def run(stage: RlStage, services: Services, folder: Path) -> Outcome:
    """Train the policy for ``stage.steps`` steps; a step is one rollout and all the updates made from it."""
    context = RlContext(stage, services.context.recipe, algorithm_of(stage, services.context.base), folder, services.context.progress)
    start = services.context.checkpoint(stage.from_)
    for deviation in deviations(stage, load_algorithm(stage.algorithm, services.context.base)):
        services.context.progress.say(f"  {stage.algorithm}: {deviation}")
    prompts = services.prompts.prompts(stage.prompts, services.prompts.tokenizer(start.path), stage.max_prompt_tokens, is_endless=True)
    if prompts.num_too_long:
        services.context.progress.say(
            f"  left out {prompts.num_too_long} prompts longer than max_prompt_tokens = {stage.max_prompt_tokens}"
        )
    if warning := too_few(stage, len(prompts.prompts)):
        services.context.progress.say(f"  {warning}")
    with ExitStack() as reward_processes:
        rewards = reward_processes.enter_context(services.context.rewards(stage.rewards))
        services.prompts.try_rewards(rewards, prompts.prompts)

        def train(before: Scores | None) -> Mapping[str, float]:
            baseline = None if before is None else Measured(before.accuracy, before.accuracy_se, 0)
            with reward_processes.pop_all():  # they end before the new model is measured
                metrics = _train(context, services, start, rewards, prompts.prompts, baseline)
            return {f"last/{name}": value for name, value in metrics.items() if not name.startswith("eval/")}

        return run_model_stage(stage.name, start, services, folder, train)


def _train(
    context: RlContext, services: Services, start: Checkpoint, rewards: RewardRuntime, prompts: Sequence[Prompt], baseline: Measured | None
) -> dict[str, float]:
    """Run all steps that are left, and save the model. Returns the last step's metrics."""
    stage, folder = context.stage, context.folder
    spec = TrainerSpec(
        start.path,
        stage,
        context.total_updates,
        context.algorithm,
        context.sampling,
        services.context.num_threads,
        context.seed,
        services.context.recipe.trainer,
    )
    with ExitStack() as stack:
        trainer = stack.enter_context(services.trainers.trainer(spec))
        files = [stack.enter_context(JsonLines(folder / f"{name}.jsonl")) for name in ("metrics", "samples", "alarms")]
        metrics_file, samples_file, alarms_file = files
        checkpoints = CheckpointSchedule(stage, stage.steps, trainer, services.context, folder, files)
        pool = services.engines.pool(start)
        saved = checkpoints.resume("step")
        first, kept = (saved.step, rollouts_from_json(saved.state["ahead"])) if saved is not None else (0, [])
        evaluate = partial(_evaluate, services, pool, start)
        loop = make_loop(context, trainer, pool, rewards, prompts, evaluate, checkpoints.finish, first, kept)
        reporter = StepReporter(context, rewards, trainer, pool)
        watch = watch_over(rewards, stage.rewards, baseline)
        metrics: dict[str, float] = {}
        if saved is None:
            loop.prove_sync()
        else:
            loop.resume(saved.step, saved.state["loop"])
            metrics = dict(saved.state["metrics"])
            watch.catch_up(read_jsonl_rows(metrics_file.path))
        with loop:
            for step in range(first, stage.steps):
                with checkpoints.step(step + 1) as end:
                    result = loop.step(step)
                    metrics, rows = reporter.metrics(result), reporter.rows(result)
                    metrics_file.write({"step": step + 1, **metrics})
                    samples_file.write_all(rows)
                    for alarm in watch.step(step + 1, metrics):
                        alarms_file.write(vars(alarm))
                        services.context.progress.say(f"  alarm, step {step + 1}: {alarm.text}")
                    end.state = partial(loop.state, step, metrics)
                    services.context.progress.step(step + 1, stage.steps, metrics)
                    services.context.trackers.step(folder.name, step + 1, metrics, rows)
        trainer.save(folder / "model")
    return metrics


def _evaluate(services: Services, pool: RolloutPool, model: Checkpoint, poll: Poll) -> dict[str, float]:
    """The recipe's evaluation of the engines' present weights, whose tokenizer is that of ``model``."""
    settings = services.context.recipe.evaluation
    if settings is None:
        return {}
    scores = measure(services, pool, model, settings, None, poll)
    return {**scores.metrics(), "eval/accuracy_se": scores.accuracy_se, "eval/lenient_se": scores.lenient_se}


def algorithm_of(stage: RlStage, base: Path) -> Algorithm:
    """The row of the algorithm table that the stage names, with the recipe's changes."""
    changes = {key: getattr(stage, key) for key in ALGORITHM_KEYS if getattr(stage, key) is not None}
    if changes.get("importance") == "none":
        changes["importance"] = None
    return replace(load_algorithm(stage.algorithm, base), **changes)


def deviations(stage: RlStage, named: Algorithm) -> list[str]:
    """How a stage's settings differ from those of the algorithm that it names, one sentence each."""
    used = {key: getattr(stage, key) for key in (*named.published, *ALGORITHM_KEYS)}
    stated = {**{key: getattr(named, key) for key in ALGORITHM_KEYS}, **named.published}
    found = [f"{key} is {value} instead of {stated[key]}" for key, value in used.items() if value is not None and value != stated[key]]
    if named.published and stage.updates_per_rollout > 1:
        found.append("minibatches shuffle whole groups instead of single samples, so that a prompt is computed once for all of its samples")
    return found


def watch_over(rewards: RewardRuntime, uses: Sequence[RewardUse], baseline: Measured | None = None) -> Watch:
    """The monitor of the stage's rewards: it tells rules from models, and leaves out rewards whose weight is always 0."""
    paid = [use.part for use in uses if use.weight]
    models = [name for name in paid if rewards.rewards[name].options.by_model]
    return Watch([name for name in paid if name not in models], models, rewards.accuracy, baseline)
