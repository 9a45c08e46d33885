"""A result says what it was made of: files by their hash, versions, machine, and the state of the user's own folder."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from grpo.run.lineage import git_state, hardware, record_stage, record_start, versions


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def test_git_state_names_the_commit_and_what_changed_since(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "-b", "work")
    (tmp_path / "recipe.yaml").write_text("a: 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    clean = git_state(tmp_path)
    assert clean == {"commit": git(tmp_path, "rev-parse", "HEAD"), "branch": "work", "changed": [], "num_changed": 0}
    (tmp_path / "recipe.yaml").write_text("a: 2\n")
    (tmp_path / "rewards.py").write_text("")
    changed = git_state(tmp_path)
    assert changed is not None and (changed["commit"], changed["num_changed"]) == (clean["commit"], 2)
    assert changed["changed"] == [" M recipe.yaml", "?? rewards.py"]


def test_a_folder_without_git_or_a_machine_without_git_has_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) is None
    monkeypatch.setenv("PATH", "")
    assert git_state(tmp_path) is None
    assert hardware()["gpus"] == [] and hardware()["cores"] >= 1  # nor is there an nvidia-smi to ask


def test_versions_are_those_of_installed_packages() -> None:
    import numpy

    found = versions()
    assert found["numpy"] == numpy.__version__ and found["python"].startswith("3.")


def test_every_start_is_added_and_a_torn_file_begun_anew(tmp_path: Path) -> None:
    record_start(tmp_path, tmp_path)
    record_start(tmp_path, tmp_path)
    starts = json.loads((tmp_path / "lineage.json").read_text())["starts"]
    assert len(starts) == 2 and starts[0].keys() == {"at", "command", "versions", "hardware", "git"}
    (tmp_path / "lineage.json").write_text('{"starts": [')
    record_start(tmp_path, tmp_path)
    assert len(json.loads((tmp_path / "lineage.json").read_text())["starts"]) == 1


def test_a_stage_lists_what_it_made_by_size_and_sha256(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"abc")
    record_stage(tmp_path, ["base", "sums"], tmp_path / "model")
    assert json.loads((tmp_path / "lineage.json").read_text()) == {
        "inputs": ["base", "sums"],
        "files": [
            {
                "file": "model/model.safetensors",
                "bytes": 3,
                # pragma: allowlist nextline secret
                "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",  # of "abc", FIPS 180-2, appendix B.1
            }
        ],
    }
    record_stage(tmp_path, ["base"], None)
    assert json.loads((tmp_path / "lineage.json").read_text())["files"] == []
