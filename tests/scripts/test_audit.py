"""The audit finds a planted secret, and takes a package of which nothing is known for no sound one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.audit import ROOT, holes, secrets, told_of


def test_a_hole_is_told_with_the_version_that_mends_it_and_unknown_is_not_sound() -> None:
    sound = {"name": "a", "version": "1", "vulns": []}
    holed = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"]}, {"id": "PYSEC-2", "fix_versions": []}]}
    unknown = {"name": "c", "skip_reason": "Dependency not found on PyPI"}
    assert told_of([sound]) == []
    told = told_of([sound, holed, unknown])
    assert told[:2] == ["holes: b 2: PYSEC-1, mended in 2.1", "holes: b 2: PYSEC-2, mended in no version yet"]
    assert "advisories of 1 of 3 packages could not be had (c), so nothing is known of them" in told[2]


def test_a_tool_that_cannot_be_had_is_a_problem_and_no_pass(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    assert "cannot be run" in secrets("/nowhere/uv", tmp_path)[0]
    assert "gave no result: nothing said" in holes("true", tmp_path / "constraints.txt")[0]


@pytest.fixture(scope="module")
def uv() -> str:
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    works = found and subprocess.run([found, "tool", "run", "--from", "detect-secrets==1.5.0", "detect-secrets", "--version"], check=False)
    if not works or works.returncode:
        pytest.skip("detect-secrets could not be fetched")
    return str(found)


@pytest.mark.slow
def test_a_planted_secret_is_found_and_one_that_is_marked_is_passed_over(uv: str, tmp_path: Path) -> None:
    key = "AKIA" + "QWERTYUIOPASDFGH"
    (tmp_path / "leak.py").write_text(f'first = 1\nkey = "{key}"\n')
    (tmp_path / "marked.py").write_text(f'key = "{key}"  # pragma: allowlist secret\n')
    (tmp_path / "untracked.py").write_text(f'key = "{key}"\n')
    subprocess.run("git init -q && git add leak.py marked.py", shell=True, cwd=tmp_path, check=True)
    problems = secrets(uv, tmp_path)
    assert problems and all(problem.startswith("secrets: leak.py:2: ") for problem in problems)


@pytest.mark.slow
def test_nothing_under_version_control_looks_like_a_secret(uv: str) -> None:
    assert secrets(uv, ROOT) == []
