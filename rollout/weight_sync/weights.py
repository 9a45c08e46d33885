"""The contents of a weight sync and their transports, with a manifest of names, shapes, dtypes and hashes that proves them on arrival.

    host       as bytes through main memory, and to other machines through Ray's object store
    nixl       from the trainer's device memory to the engine's, by RDMA, NVLink, shared memory or TCP, whichever NIXL finds
    cuda_ipc   as a handle of the trainer's device memory, to an engine on the same GPU

The last two are Ray's direct transports: each engine fetches the weights itself, so a lost or new engine does not affect the others. They keep a
copy of all weights in the trainer's memory until the next sync.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rollout.errors import WeightSyncError

if TYPE_CHECKING:
    import torch


Transport = Literal["host", "nixl", "cuda_ipc"]
CHECKSUM_WORDS = 2**24


@dataclass(frozen=True)
class TensorRecord:
    """A tensor as it was sent: its shape, its dtype ("bfloat16"), and a 128-bit digest of its bytes."""

    shape: tuple[int, ...]
    dtype: str
    digest: str


@dataclass(frozen=True)
class WeightUpdate:
    """One version of all weights. ``payload`` holds raw bytes (numpy has no bfloat16), or tensors if they do not go through main memory;
    ``manifest`` records what they must be."""

    version: int
    manifest: Mapping[str, TensorRecord]
    payload: Mapping[str, np.ndarray | torch.Tensor]


def pack_weights(
    tensors: Iterable[tuple[str, torch.Tensor]],
    version: int,
    dtype: torch.dtype,
    transport: Transport = "host",
    stays_float32: Callable[[str], bool] = lambda name: False,
) -> WeightUpdate:
    """Copy the tensors in ``dtype``, as bytes if they go through main memory, and record them in the manifest before anything is sent.

    ``stays_float32`` names the tensors that a narrower ``dtype`` would damage.
    """
    import torch

    manifest: dict[str, TensorRecord] = {}
    payload: dict[str, np.ndarray | torch.Tensor] = {}
    for name, tensor in tensors:
        held = torch.promote_types(dtype, torch.float32) if stays_float32(name) else dtype
        sent = tensor.detach().to(device="cpu" if transport == "host" else tensor.device, dtype=held, copy=True).contiguous()
        payload[name] = _bytes_of(sent).numpy() if transport == "host" else sent
        manifest[name] = TensorRecord(tuple(sent.shape), _dtype_of(sent), _digest(payload[name]))
    return WeightUpdate(version, manifest, payload)


def unpack_weights(update: WeightUpdate) -> dict[str, torch.Tensor]:
    """The tensors of ``update``, each proven to be what its sender recorded.

    Raises WeightSyncError with the name of every tensor that is missing, unexpected, of another size, or of other bytes.
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
        tensors[name] = (
            torch.from_numpy(raw.copy()).view(getattr(torch, record.dtype)).reshape(record.shape) if isinstance(raw, np.ndarray) else raw
        )
    if problems:
        raise WeightSyncError(f"weight sync of version {update.version} is not what the trainer sent: " + "; ".join(sorted(problems)))
    return tensors


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    return tensor.flatten().view(torch.uint8)


def _dtype_of(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _digest(raw: Any) -> str:
    """The xxh3-128 of bytes, or a tensor's dtype, shape and two checksums, which are computed on its device."""
    import xxhash

    if isinstance(raw, np.ndarray):
        return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(raw))
    first, second = (_checksum(_bytes_of(raw), key) for key in (0x5851F42D4C957F2D, 0x14057B7EF767814F))
    return f"{_dtype_of(raw)} {list(raw.shape)} {first:016x}{second:016x}"


def _checksum(raw: torch.Tensor, key: int) -> int:
    """Sum of all eight-byte words, each times an odd number that depends on its index, modulo 2^64.

    Integer addition does not depend on the order, so the sum is the same on any device. A change of a single word always changes it, and a
    change of several words goes unnoticed with a probability of about 2^-63.
    """
    import torch

    words = torch.nn.functional.pad(raw, (0, -len(raw) % 8)).view(torch.int64)
    total = torch.zeros((), dtype=torch.int64, device=raw.device)
    for start in range(0, len(words), CHECKSUM_WORDS):
        part = words[start : start + CHECKSUM_WORDS]
        mixed = (torch.arange(start, start + len(part), device=raw.device) + 1) * key
        mixed = (mixed ^ (mixed >> 29)) * key
        total += (part * ((mixed ^ (mixed >> 32)) | 1)).sum()
    return total.item() % 2**64
