"""What travels in a weight sync, how, and how both ends know that it is the same: a manifest of names, shapes, dtypes and hashes.

    host       as bytes through main memory, and to other machines through Ray's object store
    nixl       from the memory that the trainer computes in to the engine's own, by RDMA, NVLink, shared memory or TCP, whichever NIXL finds
    cuda_ipc   as a handle of that memory, to an engine on the same GPU

The last two are Ray's direct transports: each engine fetches by itself, so one that is lost or joins concerns nobody else. They leave a copy of
all weights in the trainer's memory until the next sync.
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
    """A tensor as it was sent: its shape, its dtype ("bfloat16"), and 128 bits that follow from its bytes."""

    shape: tuple[int, ...]
    dtype: str
    digest: str


@dataclass(frozen=True)
class WeightUpdate:
    """One version of all weights. ``payload`` holds raw bytes (numpy knows no bfloat16), or tensors where they go past main memory; ``manifest``
    says what they must be."""

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
    """Cast a copy to ``dtype``, view as bytes where it goes through main memory, record. The manifest is made before anything travels.

    ``stays_float32``: names of tensors that a narrower ``dtype`` would damage.
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
    """Of bytes their xxh3-128; of a tensor two checksums, made where it is, after its dtype and shape."""
    import xxhash

    if isinstance(raw, np.ndarray):
        return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(raw))
    first, second = (_checksum(_bytes_of(raw), key) for key in (0x5851F42D4C957F2D, 0x14057B7EF767814F))
    return f"{_dtype_of(raw)} {list(raw.shape)} {first:016x}{second:016x}"


def _checksum(raw: torch.Tensor, key: int) -> int:
    """Sum of all words of eight bytes, each times an odd number that follows from its place, modulo 2^64.

    Integers add up alike in any order, so it is the same on any device; no change of a single word leaves it as it was, and of several words
    one in about 2^63 does.
    """
    import torch

    words = torch.nn.functional.pad(raw, (0, -len(raw) % 8)).view(torch.int64)
    total = torch.zeros((), dtype=torch.int64, device=raw.device)
    for start in range(0, len(words), CHECKSUM_WORDS):
        part = words[start : start + CHECKSUM_WORDS]
        place = (torch.arange(start, start + len(part), device=raw.device) + 1) * key
        place = (place ^ (place >> 29)) * key
        total += (part * ((place ^ (place >> 32)) | 1)).sum()
    return total.item() % 2**64
