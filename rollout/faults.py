"""Faults on purpose: tests name one in GRPO_FAULT. A weight update is corrupted, a gradient spoilt, too much memory asked for, or a process
killed at a named point.

GRPO_FAULT=drop                      one of FAULTS
GRPO_FAULT=kill:generating:2@1       kill -9 of worker 1 at the second time that it reaches the point "generating"; without @1, of any process
GRPO_FAULT=kill:rollout:2+0.3        0.3 s after it has got there
GRPO_FAULT=hang:generating:1         the process sleeps there instead
GRPO_FAULT=hang:updating:2+1.5       for 1.5 s only
GRPO_FAULT_MARK=/some/file           the fault happens once: the file is made as it does, and nothing happens where it exists
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from rollout.weight_sync.weights import WeightUpdate

FAULTS = ("drop", "stale", "transpose", "stale_kernel", "nan_gradient", "out_of_memory")
POINTS = ("starting", "idle", "generating", "syncing", "updating", "saving", "rollout", "reward", "update", "sync")
HANG_S = 3600.0
VARIABLES = ("GRPO_FAULT", "GRPO_FAULT_MARK")

_reached: Counter[str] = Counter()


def fault() -> str:
    """The fault that tests asked for, or "". Raises ValueError for one that does not exist, so that no test passes by a typing mistake."""
    name = os.environ.get("GRPO_FAULT", "")
    if not name or name in FAULTS:
        return name
    _point_fault(name)
    return ""


def fault_asked_for() -> bool:
    return bool(os.environ.get("GRPO_FAULT"))


def fault_point(point: str, worker: int | None = None) -> None:
    """Die or hang here where GRPO_FAULT says so."""
    name = os.environ.get("GRPO_FAULT", "")
    if not name or name in FAULTS:
        return
    what, where, count, whose, delay_s = _point_fault(name)
    if where != point or (whose is not None and whose != worker):
        return
    _reached[point] += 1
    mark = os.environ.get("GRPO_FAULT_MARK")
    if _reached[point] != count or (mark and Path(mark).exists()):
        return
    if mark:
        Path(mark).touch()
    if what == "hang":
        time.sleep(delay_s or HANG_S)
    elif delay_s:
        threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGKILL)).start()
    else:
        os.kill(os.getpid(), signal.SIGKILL)


def _point_fault(name: str) -> tuple[str, str, int, int | None, float]:
    found = re.fullmatch(r"(kill|hang):([a-z]+):(\d+)(?:@(\d+))?(?:\+(\d+\.?\d*))?", name)
    if not found or found[2] not in POINTS:
        raise ValueError(
            f"GRPO_FAULT={name!r} is neither one of {FAULTS} nor kill:POINT:COUNT[@WORKER][+SECONDS] (or hang:) with a POINT of {POINTS}"
        )
    return found[1], found[2], int(found[3]), int(found[4]) if found[4] else None, float(found[5] or 0)


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
            side, raw = update.manifest[name].shape[0], payload[name]
            if isinstance(raw, np.ndarray):
                payload[name] = np.ascontiguousarray(raw.reshape(side, side, -1).transpose(1, 0, 2)).reshape(-1)
            else:
                payload[name] = raw.T.contiguous()
    return replace(update, payload=payload)
