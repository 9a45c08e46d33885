"""The self-test, before training, of whether this engine can replace this model's weights in place. It tries it with very different weights."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rollout.engines.base import RolloutEngine, generate
from rollout.errors import WeightSyncError
from rollout.types import Completion, Request, SamplingParams
from rollout.weight_sync.weights import pack_weights

if TYPE_CHECKING:
    import torch

TOLERANCE = 1e-3
NOISE = 0.5  # times each tensor's standard deviation, so that any layer left behind shows at once


@dataclass(frozen=True)
class ReloadProof:
    """The result of the self-test. ``gap`` is the mean absolute log-prob difference per token between reloaded and freshly built engine."""

    in_place: bool
    gap: float
    why: str


def prove_reload(
    engine: RolloutEngine, folder: Path, prompts: Sequence[Sequence[int]], dtype: str, deadline_s: float = 120.0
) -> ReloadProof:
    """Load perturbed weights in place and sample; build an engine from those weights, sample the same and compare. Restores ``folder`` at the end.

    The two samples differ in tokens or log-probabilities if the reload misses a layer, and only then.
    """
    import torch

    perturbed = perturb(read_safetensors(folder))
    requests = [Request(f"proof-{i}", tuple(tokens), SamplingParams(max_tokens=8), seed=i) for i, tokens in enumerate(prompts)]
    version = engine.version
    with tempfile.TemporaryDirectory(prefix="grpo-proof-") as temporary:
        try:
            engine.load_weights(pack_weights(perturbed.items(), version, getattr(torch, dtype)))
            reloaded = generate(engine, requests, deadline_s)
        except Exception as error:  # an engine that cannot replace this architecture's weights may raise anything; it is rebuilt instead
            reloaded, why = None, str(error) if isinstance(error, WeightSyncError) else f"{type(error).__name__}: {error}"
        if reloaded is not None:
            write_model(perturbed, folder, Path(temporary), getattr(torch, dtype))
            engine.load_model(Path(temporary), version)
            gap = sampled_gap(reloaded, generate(engine, requests, deadline_s))
            why = f"gap {gap:.1e} against a freshly built engine, tolerance {TOLERANCE:.0e}"
        engine.load_model(folder, version)
    if reloaded is None:
        return ReloadProof(False, float("inf"), why)
    return ReloadProof(gap <= TOLERANCE, gap, why)


def sampled_gap(first: Sequence[Completion], second: Sequence[Completion]) -> float:
    """Mean absolute log-prob difference over the tokens up to and including the first that differ, which counts as a difference of 1."""
    differences = []
    for a, b in zip(first, second, strict=True):
        for token_a, token_b, logprob_a, logprob_b in zip(
            *(column.tolist() for column in (a.tokens, b.tokens, a.logprobs, b.logprobs)), strict=False
        ):
            differences.append(abs(logprob_a - logprob_b) if token_a == token_b else 1.0)
            if token_a != token_b:
                break
    return sum(differences) / max(1, len(differences))


def perturb(tensors: dict[str, torch.Tensor], seed: int = 0) -> dict[str, torch.Tensor]:
    """Every tensor plus seeded noise of half its standard deviation, or of 0.1 if that is zero, as for fresh norm weights."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    changed = {}
    for name, tensor in sorted(tensors.items()):
        value = tensor.float()
        spread = value.std().item() if value.numel() > 1 else 0.0
        noise = torch.randn(value.shape, generator=generator) * (NOISE * spread if spread > 1e-6 else 0.1)
        changed[name] = value + noise
    return changed


def read_safetensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a Hugging Face folder under their checkpoint names."""
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(file))
    return tensors


def write_model(tensors: dict[str, torch.Tensor], like: Path, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write a Hugging Face folder with these tensors, in ``dtype`` or as they are, and everything else as in ``like``."""
    from safetensors.torch import save_file

    for file in like.iterdir():
        if file.is_file() and ".safetensors" not in file.name:
            shutil.copy(file, folder / file.name)
    stored = {name: tensor.to(dtype or tensor.dtype).contiguous() for name, tensor in tensors.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
