"""What travels in a weight sync, and how both ends know that it is the same: a manifest of names, shapes, dtypes and hashes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rollout.errors import WeightSyncError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TensorRecord:
    """A tensor as it was sent: its shape, its dtype ("bfloat16"), and the xxh3-128 of its bytes."""

    shape: tuple[int, ...]
    dtype: str
    digest: str


@dataclass(frozen=True)
class WeightUpdate:
    """One version of all weights. ``payload`` holds raw bytes (numpy knows no bfloat16); ``manifest`` says what they must be."""

    version: int
    manifest: Mapping[str, TensorRecord]
    payload: Mapping[str, np.ndarray]


def pack_weights(tensors: Iterable[tuple[str, torch.Tensor]], version: int, dtype: torch.dtype) -> WeightUpdate:
    """Cast a copy to ``dtype``, view as bytes, record. The manifest is made from the sender's tensors, before anything travels."""
    manifest, payload = {}, {}
    for name, tensor in tensors:
        sent = tensor.detach().to(device="cpu", dtype=dtype, copy=True).contiguous()
        payload[name] = _bytes_of(sent)
        manifest[name] = TensorRecord(tuple(sent.shape), str(sent.dtype).removeprefix("torch."), _digest(payload[name]))
    return WeightUpdate(version, manifest, payload)


def unpack_weights(update: WeightUpdate) -> dict[str, torch.Tensor]:
    """The tensors of ``update``, after proof that each is what its sender recorded.

    Raises WeightSyncError naming every tensor that is missing, unexpected, of another size, or of other bytes.
    """
    import torch

    problems = [f"{name} was not received" for name in update.manifest.keys() - update.payload.keys()]
    problems += [f"{name} was received but never sent" for name in update.payload.keys() - update.manifest.keys()]
    tensors = {}
    for name in sorted(update.manifest.keys() & update.payload.keys()):
        record, raw = update.manifest[name], update.payload[name]
        if _digest(raw) != record.digest:
            problems.append(f"{name} differs from what was sent (shape {list(record.shape)}, {record.dtype})")
            continue
        tensors[name] = torch.from_numpy(raw.copy()).view(getattr(torch, record.dtype)).reshape(record.shape)
    if problems:
        raise WeightSyncError(f"weight sync of version {update.version} is not what the trainer sent: " + "; ".join(sorted(problems)))
    return tensors


def _bytes_of(tensor: torch.Tensor) -> np.ndarray:
    import torch

    return tensor.flatten().view(torch.uint8).numpy()


def _digest(raw: np.ndarray) -> str:
    import xxhash

    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(raw))
