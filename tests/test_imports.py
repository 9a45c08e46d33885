"""Is the toolkit quick to import, and does it notice when a user's file hides one of its packages? Each in a fresh interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "ray", "vllm", "transformers", "datasets")


def python(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *args], cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "imported", ["grpo", "grpo.config", "grpo.config.load", "grpo.cli", "rewards", "rollout", "grpo.config, rewards, rollout"]
)
def test_importing_loads_nothing_heavy(imported: str, tmp_path: Path) -> None:
    ran = python("-c", f"import sys, {imported}; print([m for m in {HEAVY} if m in sys.modules])", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "[]"


def test_help_answers_at_once(tmp_path: Path) -> None:
    """The best of three, so that a busy machine does not fail it; importing torch alone takes longer than the bound."""
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        ran = python("-c", "import sys; sys.argv = ['grpo', '--help']; from grpo.cli import main; main()", cwd=tmp_path)
        seconds.append(time.monotonic() - started)
        assert ran.returncode == 0, ran.stderr
        assert "run" in ran.stdout
    assert min(seconds) < 1.5, seconds


@pytest.mark.parametrize("name", ["rewards", "rollout"])
def test_a_file_that_hides_a_package_is_named(name: str, tmp_path: Path) -> None:
    """`python -c` looks into the current folder first, where a user may well keep a rewards.py."""
    (tmp_path / f"{name}.py").write_text("def score(completion): return 1.0\n")
    ran = python("-c", "import grpo", cwd=tmp_path)
    assert ran.returncode == 1
    last = ran.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ") and str(tmp_path / f"{name}.py") in last and str(ROOT / name) in last


def test_a_folder_that_hides_a_package_is_named(tmp_path: Path) -> None:
    (tmp_path / "rollout").mkdir()
    (tmp_path / "rollout" / "__init__.py").write_text("")
    ran = python("-c", "import grpo", cwd=tmp_path)
    assert ran.returncode == 1
    assert str(tmp_path / "rollout") in ran.stderr.strip().splitlines()[-1]


def test_a_folder_without_python_files_hides_nothing(tmp_path: Path) -> None:
    """A run's output may well be called rewards/: such a folder loses to a real package."""
    (tmp_path / "rewards").mkdir()
    assert python("-c", "import grpo", cwd=tmp_path).returncode == 0


def test_a_module_that_poses_as_a_package_is_noticed(tmp_path: Path) -> None:
    posing = "import sys, types; sys.modules['rewards'] = types.ModuleType('rewards'); import grpo"
    ran = python("-c", posing, cwd=tmp_path)
    assert ran.returncode == 1
    assert "'rewards'" in ran.stderr.strip().splitlines()[-1] and "already loaded" in ran.stderr.strip().splitlines()[-1]


def test_a_missing_sibling_asks_for_a_new_install(tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "grpo").mkdir()
    (alone / "grpo" / "__init__.py").write_text((ROOT / "grpo" / "__init__.py").read_text())
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # -S leaves out site-packages, where an editable install would supply the siblings
    ran = subprocess.run([sys.executable, "-S", "-c", "import grpo"], cwd=alone, env=env, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 1
    assert "install grpo-toolkit again" in ran.stderr.strip().splitlines()[-1]


def test_run_recipe_is_offered_at_the_front_door() -> None:
    import grpo
    from grpo.pipeline.run import run_recipe

    assert grpo.run_recipe is run_recipe
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        grpo.nothing  # noqa: B018
