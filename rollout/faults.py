"""Fault injection for tests: corrupts a weight update, spoils a gradient, asks for too much memory, or kills or hangs a process.

It needs GRPO_ALLOW_FAULTS=1 beside GRPO_FAULT, so that a variable left over in an environment cannot corrupt a run.

GRPO_FAULT=drop                      one of FAULTS
GRPO_FAULT=kill:generating:2@1       kill -9 worker 1 when it reaches the point "generating" for the second time; without @1, any process
GRPO_FAULT=kill:rollout:2+0.3        the same, 0.3 s after the point is reached
GRPO_FAULT=hang:generating:1         the process sleeps at that point instead
GRPO_FAULT=hang:updating:2+1.5       the process sleeps for 1.5 s
GRPO_FAULT_MARK=/some/file           the fault happens only once: it creates this file, and does not happen if the file exists
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

from rollout.errors import EngineError
from rollout.weight_sync.weights import WeightUpdate

FAULTS = ("drop", "stale", "transpose", "stale_kernel", "nan_gradient", "out_of_memory")
POINTS = ("starting", "idle", "generating", "syncing", "updating", "saving", "rollout", "reward", "update", "sync")
HANG_S = 3600.0
VARIABLES = ("GRPO_FAULT", "GRPO_FAULT_MARK", "GRPO_ALLOW_FAULTS")

_reached: Counter[str] = Counter()


def requested_fault() -> str:
    """GRPO_FAULT, or "" if no fault is requested. Raises EngineError if it is not allowed or does not exist."""
    name = os.environ.get("GRPO_FAULT", "")
    if not name:
        return ""
    if os.environ.get("GRPO_ALLOW_FAULTS") != "1":
        raise EngineError(f"GRPO_FAULT={name!r} is set without GRPO_ALLOW_FAULTS=1; unset it, or set both to inject a fault on purpose")
    if name not in FAULTS:
        _parse_point_fault(name)
    return name


def fault() -> str:
    """The requested fault if it is one of FAULTS, otherwise ""."""
    name = requested_fault()
    return name if name in FAULTS else ""


def fault_point(point: str, worker: int | None = None) -> None:
    """Kill or hang this process here if that is requested."""
    name = requested_fault()
    if not name or name in FAULTS:
        return
    what, where, count, whose, delay_s = _parse_point_fault(name)
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


def _parse_point_fault(name: str) -> tuple[str, str, int, int | None, float]:
    found = re.fullmatch(r"(kill|hang):([a-z]+):(\d+)(?:@(\d+))?(?:\+(\d+\.?\d*))?", name)
    if not found or found[2] not in POINTS:
        raise EngineError(
            f"GRPO_FAULT={name!r} does not exist; use one of {FAULTS}, or kill:POINT:COUNT[@WORKER][+SECONDS] (or hang:) with a POINT of {POINTS}."
        )
    return found[1], found[2], int(found[3]), int(found[4]) if found[4] else None, float(found[5] or 0)


def corrupt(update: WeightUpdate, before: WeightUpdate | None) -> WeightUpdate:
    """``update`` as a faulty transport would deliver it: one tensor is lost, has its earlier value, or is transposed. The manifest is untouched."""
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
