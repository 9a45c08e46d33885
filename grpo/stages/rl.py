"""The rl stage: group-relative policy optimization (arXiv:2402.03300) of a model; a step itself is in grpo/rl/loop.py."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from grpo.algorithm import Algorithm, load_algorithm
from grpo.config import RewardUse, RlStage
from grpo.data.prompt_order import too_few
from grpo.evaluation import measure as evaluation
from grpo.resources.checkpointing import CheckpointSchedule
from grpo.resources.context import Outcome, Workplace
from grpo.rl.context import RlContext
from grpo.rl.loop import make_loop
from grpo.rl.prefetch import Poll, rollouts_from_json
from grpo.rl.step_metrics import StepReporter
from grpo.run.monitor import Measured, Watch
from grpo.run.records import JsonLines, read_jsonl_rows
from grpo.trainer.policy_trainer import TrainerSpec
from grpo.types import Checkpoint
from rewards import RewardRuntime
from rollout.pool import RolloutPool
from rollout.types import Prompt

ALGORITHM_KEYS = ("kl_coef", "kl_in", "clip_low", "clip_high", "importance", "importance_cap", "mask_truncated")


def run(stage: RlStage, work: Workplace, folder: Path) -> Outcome:
    """Train the policy for ``stage.steps`` steps; a step is one rollout and all the updates made from it."""
    context = RlContext(stage, work.recipe, algorithm_of(stage, work.base), folder, work.progress)
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
        baseline = None if before is None else Measured(before.accuracy, before.accuracy_se, 0)
        metrics = _train(context, work, start, rewards, prompts.prompts, baseline)
    made = Checkpoint(folder / "model")
    work.artifacts[stage.name] = made
    after = evaluation.measure_checkpoint(work, made)
    scores = evaluation.summary(after, before) if after is not None else {}
    return Outcome(made, {**scores, **{f"last/{name}": value for name, value in metrics.items() if not name.startswith("eval/")}})


def _train(
    context: RlContext, work: Workplace, start: Checkpoint, rewards: RewardRuntime, prompts: Sequence[Prompt], baseline: Measured | None
) -> dict[str, float]:
    """Run all steps that are left, and save the model. Returns the last step's metrics."""
    stage, folder = context.stage, context.folder
    spec = TrainerSpec(
        start.path,
        stage,
        context.total_updates,
        context.algorithm,
        context.sampling,
        work.num_threads,
        context.seed,
        work.recipe.trainer,
    )
    with ExitStack() as stack:
        trainer = stack.enter_context(work.trainer(spec))
        files = [stack.enter_context(JsonLines(folder / f"{name}.jsonl")) for name in ("metrics", "samples", "alarms")]
        metrics_file, samples_file, alarms_file = files
        checkpoints = CheckpointSchedule(stage, stage.steps, trainer, work, folder, files)
        pool = work.pool(start)
        saved = checkpoints.resume("step")
        first, kept = (saved.step, rollouts_from_json(saved.state["ahead"])) if saved is not None else (0, [])
        evaluate = partial(_evaluate, work, pool, start)
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
                        work.progress.say(f"  alarm, step {step + 1}: {alarm.text}")
                    end.state = partial(loop.state, step, metrics)
                    work.progress.step(step + 1, stage.steps, metrics)
                    work.trackers.step(folder.name, step + 1, metrics, rows)
        trainer.save(folder / "model")
    return metrics


def _evaluate(work: Workplace, pool: RolloutPool, model: Checkpoint, poll: Poll) -> dict[str, float]:
    """The recipe's evaluation of the engines' present weights, whose tokenizer is that of ``model``."""
    settings = work.recipe.evaluation
    if settings is None:
        return {}
    scores = evaluation.measure(work, pool, model, settings, None, poll)
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
