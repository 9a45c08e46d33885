"""Does the built wheel work where no checkout is, even in a folder that holds a rewards.py of the user's own?"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """A folder with the wheel installed into it and nothing else: the packages it needs come from this environment."""
    target = wheel.parent / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile", "--target", target, wheel]
    ran = subprocess.run(pip, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return target


@pytest.fixture
def users_folder(tmp_path: Path) -> Path:
    (tmp_path / "rewards.py").write_text("def reward(completion, answer):\n    return float(answer in completion)\n")
    return tmp_path


def run(installed: Path, *command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=60)


def test_the_wheel_holds_code_and_recipes_only(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"grpo", "rewards", "rollout", next(top for top in tops if top.endswith(".dist-info"))}
    shipped = {path.name for path in (ROOT / "recipes").glob("*.yaml")}
    assert shipped and shipped == {Path(name).name for name in names if name.startswith("grpo/_recipes/") and name.endswith(".yaml")}
    assert not [name for name in names if name.endswith(".pyc")]


def test_the_command_lists_recipes_beside_a_users_rewards_file(installed: Path, users_folder: Path) -> None:
    ran = run(installed, installed / "bin" / "grpo", "recipes", cwd=users_folder)
    assert ran.returncode == 0, ran.stderr
    for path in (ROOT / "recipes").glob("*.yaml"):
        assert path.stem in ran.stdout


def test_it_is_the_installed_copy_that_answers(installed: Path, tmp_path: Path) -> None:
    where = "import grpo, rewards, rollout; print(grpo.__file__, rewards.__file__, rollout.__file__)"
    ran = run(installed, sys.executable, "-c", where, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count(str(installed)) == 3


def test_a_script_beside_a_users_rewards_file_is_told_which_file_hides_ours(installed: Path, users_folder: Path) -> None:
    """Python puts a script's own folder first, so there `import rewards` is theirs: better an error that names the file than a strange one."""
    (users_folder / "train.py").write_text("from grpo import run_recipe\n")
    ran = run(installed, sys.executable, "train.py", cwd=users_folder)
    assert ran.returncode == 1
    assert str(users_folder / "rewards.py") in ran.stderr.strip().splitlines()[-1]
