"""A whole run: load the recipe, plan, run the stages that are not done, and leave a summary and a report."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from grpo.config import DistillStage, MadeModel, PretrainedModel, RlStage, SftStage
from grpo.config.load import LoadedRecipe, load_recipe, resolved_yaml
from grpo.data.gold_checks import try_before_the_run
from grpo.errors import EngineError, RecipeError, StorageError
from grpo.plan import PlannedStage, make_plan, places
from grpo.plan.architecture import architectures
from grpo.plan.models import check_models, model_problems
from grpo.report.page import ReportRefresh
from grpo.resources.ray_cluster import obstacles, start_ray
from grpo.run.folder import CHECKPOINTS, RunFolder, holds_training
from grpo.run.interruption import Interruption
from grpo.run.lineage import record_stage, record_start
from grpo.run.origins import origins_of
from grpo.run.progress import Progress
from grpo.run.records import write_text
from grpo.types import Artifact, Checkpoint, Dataset
from grpo.util.model_folder import local_folder
from rewards.errors import one_line
from rollout.faults import requested_fault

MADE_FROM = ("fingerprint", "identity", "origins")  # of a stage's record: what the summary leaves out


def checked_recipe(ref: str, overrides: Sequence[str] = (), deeply: bool = True, needs_weights: bool = True) -> LoadedRecipe:
    """The recipe, with nothing wrong that can be told without loading a model. Raises RecipeError with all problems.

    ``deeply`` also looks at the tensors of models that are here, and at what adapters are put on; torch is loaded for it. Without
    ``needs_weights`` a model may be a folder of a config.json and nothing else, whose shapes are planned with.
    """
    loaded = load_recipe(ref, overrides)
    if problems := check_models(loaded, deeply, needs_weights):
        raise RecipeError(problems)
    return loaded


def default_folder(loaded: LoadedRecipe) -> Path:
    return Path("runs") / loaded.recipe.name


def run_recipe(
    ref: str, overrides: Sequence[str] = (), out: str | os.PathLike[str] | None = None, redo: str | None = None
) -> dict[str, Any]:
    """Run a recipe to its end, or go on with it, and return its summary (the contents of summary.json).

    ref        a path, or the name of a shipped recipe
    overrides  "dotted.key=value" strings
    out        the run's folder; runs/<name> by default
    redo       the name of a finished stage to make again, with all after it
    Raises RecipeError before anything is loaded or written where the recipe is wrong, and the toolkit's other errors where a run fails.
    """
    loaded = checked_recipe(ref, overrides)
    if obstructing := obstacles():
        raise RecipeError(obstructing)
    _refuse_stray_faults()
    run = RunFolder((Path(out) if out is not None else default_folder(loaded)).resolve())
    if redo is not None and redo not in [stage.name for stage in loaded.recipe.stages]:
        raise RecipeError(f"--redo {redo}: no such stage; stages are {[stage.name for stage in loaded.recipe.stages]}")
    run.check()
    pending = [
        planned.stage for planned in make_plan(loaded, run, redo) if not planned.is_done
    ]  # refuses before anything is written or removed
    if pending:
        from grpo.plan.plan import fitting_rows

        fitting_rows(loaded.recipe, loaded.base, architectures(loaded.recipe, loaded.base))  # whatever stage would meet a bad row
    trial = try_before_the_run(loaded.recipe, loaded.base, pending)
    trial.raise_problems()
    with run.held():
        if redo is not None:
            _forget(loaded, run, redo)
        return _run(loaded, run, make_plan(loaded, run), trial.refused)


def _refuse_stray_faults() -> None:
    """Only tests inject faults. A GRPO_FAULT that is left over in the environment must not corrupt a run."""
    try:
        requested_fault()
    except EngineError as error:
        raise RecipeError(str(error)) from None


def _run(loaded: LoadedRecipe, run: RunFolder, plan: list[PlannedStage], warnings: Sequence[str] = ()) -> dict[str, Any]:
    recipe = loaded.recipe
    refresh = ReportRefresh(run.path)
    with Progress(len(plan), after_step=refresh.if_due) as progress, Interruption(progress.say) as interruption:
        if all(planned.is_done for planned in plan):
            progress.say(f"{recipe.name}: already complete, see {run.path / 'report.html'}")
            return _write_summary(loaded, run, plan, "complete")
        for warning in warnings:
            progress.say(warning)
        settled = _settled_before(loaded, run, plan)
        artifacts: dict[str, Artifact] = {}
        from grpo.resources.services import Services
        from grpo.resources.token_budgets import settle_all
        from grpo.stages import runner_of

        current: PlannedStage | None = None
        services = Services.of(recipe, loaded.base.resolve(), run.path, artifacts, progress, interruption=interruption)
        try:
            if run.summary() is not None:
                _write_summary(loaded, run, plan, "running")  # how an earlier start ended is over
            record_start(run.path, loaded.base)
            start_ray()
            artifacts["base"] = _model(recipe.model, "base", services)
            settled = settle_all(recipe, services.context.base, artifacts["base"].path, settled)
            write_text(run.path / "recipe.yaml", resolved_yaml(loaded, settled))
            for planned in plan:
                if planned.is_done:
                    progress.say(f"[{planned.number}/{len(plan)}] {planned.stage.name}: done before, skipped")
                    artifacts.update(_made_by(run, planned))
                    continue
                current = planned
                _run_stage(planned, run, services, runner_of(planned.stage.kind), settled)
                current = None
                write_text(run.path / "recipe.yaml", resolved_yaml(loaded, settled))
                _write_summary(loaded, run, plan, "running")
        except BaseException as error:
            with contextlib.suppress(StorageError):  # a full disk may be why
                if isinstance(error, KeyboardInterrupt):
                    _write_summary(loaded, run, plan, "interrupted")
                else:
                    _write_summary(loaded, run, plan, "failed", error, current)
            raise
        finally:
            services.close()
        summary = _write_summary(loaded, run, plan, "complete")
        progress.say(f"{recipe.name}: complete, see {run.path / 'report.html'}")
    return summary


def _run_stage(planned: PlannedStage, run: RunFolder, services: Any, runner: Any, settled: dict[str, int]) -> None:
    """Run it and leave its record. ``settled`` holds max_tokens_per_micro_batch by stage; a stage whose model is made here adds its own."""
    stage = planned.stage
    folder = run.stage(planned.number, stage.name)
    if not holds_training(folder):
        shutil.rmtree(folder, ignore_errors=True)  # an attempt with nothing to go on from: its inputs are intact, so it is made again
    folder.mkdir(parents=True, exist_ok=True)
    earlier = (run.start(planned.number, stage.name) or {}).get("origins")
    origins = origins_of(
        stage,
        services.context.recipe,
        services.context.base,
        {name: artifact.path for name, artifact in services.context.artifacts.items()},
        earlier,
    )
    made_from = {"fingerprint": planned.fingerprint, "identity": dict(planned.identity), "origins": origins}
    run.write_start(planned.number, stage.name, {**made_from, "places": places(services.context.recipe)})
    started = time.monotonic()
    if isinstance(stage, DistillStage) and not isinstance(stage.from_, str):
        services.context.artifacts[f"{stage.name}_student"] = _model(stage.from_, f"{stage.name}_student", services)
    services.context.progress.stage(planned.number, stage.name, stage.kind, f"from {planned.start}: {planned.sizes}")
    if isinstance(stage, SftStage | RlStage | DistillStage) and stage.max_tokens_per_micro_batch is None:
        if stage.name not in settled:
            from grpo.resources.token_budgets import max_tokens_per_micro_batch

            start = stage.from_ if isinstance(stage.from_, str) else f"{stage.name}_student"
            settled[stage.name] = max_tokens_per_micro_batch(
                stage, services.context.recipe, services.context.base, services.context.artifacts[start].path
            )
        stage = stage.model_copy(update={"max_tokens_per_micro_batch": settled[stage.name]})
    outcome = runner(stage, services, folder)
    if outcome.artifact is not None:
        services.context.artifacts[stage.name] = outcome.artifact
    record_stage(folder, planned.inputs, outcome.artifact.path if outcome.artifact is not None else None)
    seconds = time.monotonic() - started
    output = outcome.artifact.path.relative_to(run.path).as_posix() if outcome.artifact is not None else None
    record = {
        "name": stage.name,
        "kind": stage.kind,
        "status": "complete",
        "seconds": round(seconds, 2),
        "from": planned.start,
        "output": output,
        "metrics": dict(outcome.metrics),
        **made_from,
    }
    run.write_record(planned.number, stage.name, record)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)  # what is left of training is its model
    services.context.trackers.step(f"{folder.name}/result", 0, outcome.metrics)
    services.context.progress.say(f"  done in {seconds:.0f} s{_result(outcome.metrics)}")


def _settled_before(loaded: LoadedRecipe, run: RunFolder, plan: list[PlannedStage]) -> dict[str, int]:
    """The max_tokens_per_micro_batch of each stage that an earlier start of this run began, so that the stage repeats on any machine."""
    file = run.path / "recipe.yaml"
    if not file.exists():
        return {}
    begun = {each.stage.name for each in plan if run.record(each.number, each.stage.name) or run.start(each.number, each.stage.name)}
    left_open = {
        stage.name for stage in loaded.recipe.stages if stage.name in begun and getattr(stage, "max_tokens_per_micro_batch", 0) is None
    }
    stages = yaml.safe_load(file.read_text(encoding="utf-8"))["stages"]
    return {
        stage["name"]: stage["max_tokens_per_micro_batch"]
        for stage in stages
        if stage["name"] in left_open and stage.get("max_tokens_per_micro_batch")
    }


def _result(metrics: Any) -> str:
    if "eval/accuracy_after" in metrics:
        return (
            f": held-out accuracy {metrics['eval/accuracy_before']:.3f} -> {metrics['eval/accuracy_after']:.3f} "
            f"(± {metrics['eval/accuracy_se']:.3f}, {metrics['eval/num_problems']:.0f} problems), "
            f"lenient {metrics['eval/lenient_before']:.3f} -> {metrics['eval/lenient_after']:.3f}"
        )
    if "eval/accuracy" in metrics:
        return f": held-out accuracy {metrics['eval/accuracy']:.3f} (± {metrics['eval/accuracy_se']:.3f})"
    if "reject/kept" in metrics:
        return f": kept {metrics['reject/kept']:.0f} of {metrics['reject/samples']:.0f} samples"
    return ""


def _model(model: str | MadeModel | PretrainedModel, name: str, services: Any) -> Checkpoint:
    """The folder of a model: a path, a hub id's local copy, or one made on the spot."""
    if isinstance(model, MadeModel):
        return Checkpoint(_made(model, name, services))
    ref = model if isinstance(model, str) else model.path
    if (found := local_folder(ref, services.context.base)) is not None:
        return _checked(ref, found.resolve())
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(ref, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]))
    except (OSError, ValueError) as error:  # its own errors are of these families, and so are those of the network below
        raise RecipeError(
            f"model {ref!r} is no folder here and could not be had from the hub: {one_line(error)}; "
            "write the path of a folder, or check its name, the network and HF_TOKEN"
        ) from error
    return _checked(ref, folder)


def _checked(ref: str, folder: Path) -> Checkpoint:
    """Raises RecipeError with all that is wrong with a model's folder."""
    if problems := model_problems(folder, ref):
        raise RecipeError(problems)
    return Checkpoint(folder)


def _made(made: MadeModel, name: str, services: Any) -> Path:
    """Made in a process of its own, so that the driver never holds a model."""
    import ray

    from grpo.resources.tiny_models import make_tiny, tiny_folder

    rows = services.prompts.rows(made.problems)

    def render(question: str) -> str:
        return template.text(question, None)

    template, tags, num_threads = services.prompts.template, services.context.recipe.tags, services.context.num_threads
    folder = tiny_folder(made, rows, tags, render)
    if not (folder / "config.json").exists():
        _check_cache(folder.parent)
        services.context.progress.task(
            f"making the model {name!r}: {made.make}, {made.pretrain_updates} updates of pre-training, the last on noisy text"
        )

    @ray.remote(num_cpus=0)
    class Steps:
        """Where the making is: it writes, the driver reads."""

        def __init__(self) -> None:
            self.at = (0, made.pretrain_updates, 0.0)

        def write(self, *at: Any) -> None:
            self.at = at

        def read(self) -> Any:
            return self.at

    @ray.remote(num_cpus=0, runtime_env={"env_vars": {"OMP_NUM_THREADS": str(num_threads)}})
    def make(steps: Any) -> Path:
        import torch

        torch.set_num_threads(num_threads)
        return make_tiny(made, rows, tags, render, lambda *at: steps.write.remote(*at))

    steps = Steps.remote()  # type: ignore[attr-defined]
    making = make.remote(steps)
    shown = 0
    while not ray.wait([making], timeout=2.0)[0]:
        done, total, loss = ray.get(steps.read.remote())
        if done > shown:
            services.context.progress.step(done, total, {"loss/total": loss})
            shown = done
    return ray.get(making)


def _check_cache(cache: Path) -> None:
    """Raises RecipeError where made models can't be kept: a container may have no home folder."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        writable = os.access(cache, os.W_OK | os.X_OK)
    except OSError:
        writable = False
    if not writable:
        raise RecipeError(f"made models cannot be kept in {cache}, which can't be written; set GRPO_CACHE to a folder that can")


def _made_by(run: RunFolder, planned: PlannedStage) -> dict[str, Artifact]:
    record = run.record(planned.number, planned.stage.name)
    assert record is not None
    if record["output"] is None:
        return {}
    path = (run.path / record["output"]).resolve()
    return {planned.stage.name: Dataset(path) if planned.makes == "dataset" else Checkpoint(path)}


def _forget(loaded: LoadedRecipe, run: RunFolder, first: str) -> None:
    """Remove the results of stage ``first`` and of all after it."""
    names = [stage.name for stage in loaded.recipe.stages]
    for number, name in enumerate(names, start=1):
        if number > names.index(first):
            shutil.rmtree(run.stage(number, name), ignore_errors=True)


def _write_summary(
    loaded: LoadedRecipe,
    run: RunFolder,
    plan: list[PlannedStage],
    status: str,
    error: BaseException | None = None,
    failed: PlannedStage | None = None,
) -> dict[str, Any]:
    """``error``: why the run failed, in stage ``failed``, or before or between stages."""
    why = {} if error is None else {"error": {"kind": type(error).__name__, "message": " ".join(str(error).split())}}
    stages = []
    for planned in plan:
        record = run.record(planned.number, planned.stage.name)
        if record is None:
            record = {
                "name": planned.stage.name,
                "kind": planned.stage.kind,
                "status": "pending",
                "from": planned.start,
                "output": None,
                "metrics": {},
            }
            if planned is failed:
                record |= {"status": "failed", **why}
        stages.append({key: value for key, value in record.items() if key not in MADE_FROM})
    summary = {"recipe": loaded.recipe.name, "status": status, "stages": stages, **why}
    run.write_summary(summary)
    ReportRefresh(run.path).now()
    return summary
