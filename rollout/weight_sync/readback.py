"""Reads weights back through the engine's kernels, to check that it computes with those it was sent.

On CPUs vLLM computes with packed copies of the weights, and a reload can leave one of them stale with no error; a checksum of the named
parameters does not see that. Given a one-hot row, a linear kernel returns exactly a column of the weight that it uses: one product with
1, the others with 0. So a few columns of every layer are read back through its own kernel and compared, bit for bit, with what was sent.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

COLUMNS = 32


def mismatched_weights(model: Any, sent: Mapping[str, torch.Tensor], seed: int) -> list[str]:
    """One line for each layer whose kernel does not return what was sent, or that nothing was sent for.

    model     vLLM's model, in the process that runs it
    sent      tensors under their checkpoint names
    seed      chooses the columns that are read back
    Layers without such a kernel (routed experts) are not read back; the self-test at the start covers them.
    """
    fused = getattr(model, "packed_modules_mapping", {})
    embeddings = {
        id(module.weight): sent[f"{name}.weight"]
        for name, module in model.named_modules()
        if _is_embedding(module) and f"{name}.weight" in sent
    }
    problems = []
    for name, module in model.named_modules():
        if _is_embedding(module):
            problems += _embedding_problems(name, module, embeddings.get(id(module.weight)), seed)
        elif hasattr(module, "quant_method") and hasattr(module, "input_size"):
            problems += _linear_problems(name, module, _parts(name, fused), sent, seed)
        elif (weight := getattr(module, "weight", None)) is not None and f"{name}.weight" in sent:
            if not _same(weight.data, sent[f"{name}.weight"]):
                problems.append(f"{name}.weight is stale")
    return problems


def _parts(name: str, fused: Mapping[str, list[str]]) -> list[str]:
    """Checkpoint names of the layers that vLLM fused into one: "...qkv_proj" is q_proj, k_proj and v_proj."""
    parent, dot, own = name.rpartition(".")
    return [f"{parent}{dot}{part}" for part in fused.get(own, [own])]


def _is_embedding(module: Any) -> bool:
    return hasattr(module, "quant_method") and hasattr(module, "embedding_dim")


def _linear_problems(name: str, module: Any, parts: list[str], sent: Mapping[str, torch.Tensor], seed: int) -> list[str]:
    import torch

    missing = [part for part in parts if f"{part}.weight" not in sent]
    if missing:
        return [f"nothing was sent for {', '.join(missing)}"]
    weight = torch.cat([sent[f"{part}.weight"] for part in parts])
    problems = _column_problems(name, module, weight, seed)
    if getattr(module, "bias", None) is not None and f"{parts[0]}.bias" in sent:
        bias = torch.cat([sent[f"{part}.bias"] for part in parts])
        if not _same(module.bias.data, bias):
            problems.append(f"{name}.bias is stale")
    return problems


def _embedding_problems(name: str, module: Any, weight: torch.Tensor | None, seed: int) -> list[str]:
    if weight is None:
        return [f"nothing was sent for {name}"]
    rows = len(weight)
    problems = [] if _same(module.weight.data[:rows], weight) else [f"{name}.weight is stale"]
    if hasattr(module, "cpu_linear"):
        problems += _column_problems(name, module, weight, seed)
    return problems


def _column_problems(name: str, module: Any, weight: torch.Tensor, seed: int) -> list[str]:
    import torch

    outputs, inputs = weight.shape
    columns = random.Random(f"{seed}-{name}").sample(range(inputs), min(COLUMNS, inputs))
    one_hot = torch.zeros(len(columns), inputs, dtype=weight.dtype, device=next(module.parameters()).device)
    one_hot[range(len(columns)), columns] = 1
    read = module.quant_method.apply(module, one_hot, bias=None)[:, :outputs]
    if _same(read, weight[:, columns].T):
        return []
    return [f"the kernel of {name} computes with another weight than was sent"]


def _same(held: torch.Tensor, sent: torch.Tensor) -> bool:
    import torch

    return held.shape == sent.shape and torch.equal(held.to(sent.dtype), sent.to(held.device))
