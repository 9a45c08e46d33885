"""Faults on purpose: tests name one in GRPO_FAULT, and the weights that a worker receives, or a gradient, are corrupted the way it says."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np

from rollout.weights import WeightUpdate

FAULTS = ("drop", "stale", "transpose", "stale_kernel", "nan_gradient")


def fault() -> str:
    """The fault that tests asked for, or "". Raises ValueError for one that does not exist, so that no test passes by a typing mistake."""
    name = os.environ.get("GRPO_FAULT", "")
    if name and name not in FAULTS:
        raise ValueError(f"GRPO_FAULT={name!r} is not one of {FAULTS}")
    return name


def corrupt(update: WeightUpdate, before: WeightUpdate | None) -> WeightUpdate:
    """``update`` as a faulty transport would deliver it: one tensor lost, left at its earlier value, or transposed; the manifest is untouched."""
    name = next(name for name, record in update.manifest.items() if len(record.shape) == 2 and record.shape[0] == record.shape[1])
    payload = dict(update.payload)
    match fault():
        case "drop":
            del payload[name]
        case "stale" if before is not None:
            payload[name] = before.payload[name]
        case "transpose":
            side = update.manifest[name].shape[0]
            payload[name] = np.ascontiguousarray(payload[name].reshape(side, side, -1).transpose(1, 0, 2)).reshape(-1)
    return replace(update, payload=payload)
