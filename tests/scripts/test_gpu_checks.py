"""The checks in scripts/gpu keep up with the code: their names resolve, their commands are valid, and every script runs on a CPU."""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
KIT = ROOT / "scripts" / "gpu"
SCRIPTS = sorted(path.stem for path in KIT.glob("*.py"))
CALLS = ("call1.sh", "call2.sh", "call3.sh")
Load = Callable[[str], ModuleType]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Imports a script of the kit for a dry run. It is forgotten afterwards, because its name is a common one."""
    import torch

    num_threads = torch.get_num_threads()
    monkeypatch.setenv("DRY", "1")
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    monkeypatch.setenv("WORK", str(tmp_path / "work"))
    monkeypatch.syspath_prepend(str(KIT))
    yield importlib.import_module
    for name in SCRIPTS:
        if name != "sitecustomize":  # Python's own, where there is one
            sys.modules.pop(name, None)
    torch.set_num_threads(num_threads)


def measurements(out: Path) -> list[dict[str, Any]]:
    """The lines of numbers.jsonl, none of which may be a failure."""
    rows = [json.loads(line) for line in (out / "numbers.jsonl").read_text().splitlines()]
    assert [row for row in rows if "error" in row] == []
    return rows


def commands(call: str, **environment: str) -> dict[str, list[str]]:
    """The checks of a call by name, as it would run them."""
    ran = subprocess.run(
        ["bash", str(KIT / call)], cwd=ROOT, env={**os.environ, "LIST": "1", **environment}, capture_output=True, text=True, timeout=20
    )
    assert ran.returncode == 0 and ran.stderr == "", ran.stderr
    return {name: shlex.split(command) for name, _, command in (line.partition(": ") for line in ran.stdout.splitlines())}


# --------------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("name", SCRIPTS)
def test_names_imported_by_a_script_exist(name: str, load: Load) -> None:
    ours = {"grpo", "rollout", "rewards", *SCRIPTS}
    for node in ast.walk(ast.parse((KIT / f"{name}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in ours:
            module = load(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name) or load(f"{node.module}.{alias.name}"), f"{name}.py:{node.lineno}"


def test_commands_name_what_exists() -> None:
    from grpo.config.load import load_recipe

    found = {name: words for call in CALLS for name, words in commands(call, WORK="/nonexistent").items()}
    assert {"probe", "truth", "bench-0.5b", "run-hf", "engine-tiny", "trl"} <= found.keys()
    for name, words in found.items():
        for word in words:
            if word.startswith(("tests/", str(KIT))):
                assert Path(ROOT, word).exists(), f"{name}: {word}"
        if words[:2] == ["grpo", "run"]:
            overrides = [word for word in words[3 : words.index("--out")] if not word.startswith("model.path=")]
            assert load_recipe(words[2], overrides, check_inputs=False).recipe.stages[0].name == "reason"


def test_only_selects_checks_by_name() -> None:
    assert commands("call1.sh", ONLY="truth run-hf").keys() == {"truth", "run-hf"}


# ------------------------------------------------------------------------------------------------------------------ dry runs


def test_probe_and_truth_run_dry(load: Load, tmp_path: Path) -> None:
    assert load("probe").main() == 0
    assert load("truth").main() == 0
    rows = measurements(tmp_path / "out")
    truth = [row for row in rows if row["check"] == "truth"]
    assert len(truth) == 8 and all(row["agrees"] for row in truth)
    assert max(row["weights_max"] for row in truth if row["precision"] == "float64") < 1e-9
    assert all(row["same"] for row in rows if row["check"] == "repeats_bit_for_bit")
    assert [row["logprobs_max"] for row in rows if row["check"] == "after_sleep"] == [0.0]


def test_truth_notices_a_trainer_that_differs(load: Load) -> None:
    truth = load("truth")
    plain, temperatures = truth.make_trainer, iter([0.8, 0.80001])  # of the CPU's trainer and the GPU's
    truth.make_trainer = lambda folder, **settings: plain(folder, **{**settings, "temperature": next(temperatures)})
    assert not truth.compare("another temperature", truth.small_model("Qwen2"), "float64")


def test_variants_without_a_compiler_agree_with_the_toolkit(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = load("bench")
    monkeypatch.setattr(sys, "argv", ["bench.py", "tiny", "--sleep"])
    assert bench.main() == 0
    arguments = bench.parse_arguments()
    trainer = bench.make_trainer(bench.random_model("tiny"), max_tokens=arguments.max_tokens, learning_rate=1e-12)
    made = bench.Bench("tiny", trainer, bench.random_batch(arguments, 512))
    reference = trainer.logprobs(made.batch)
    changes = bench.changes_to_try(trainer.model)
    for label in ("large head", "varlen"):
        bench.try_variant(made, label, changes[label], reference)
    differences = {row["variant"]: row["logprobs_mean"] for row in measurements(tmp_path / "out") if row["check"] == "variant_agrees"}
    assert differences["large head"] < 1e-6
    assert 0 < differences["varlen"] < 1e-2  # another order of sums in bfloat16
    np.testing.assert_allclose(trainer.logprobs(made.batch), reference, atol=1e-6)  # what was changed is restored


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("call", "only"),
    [
        ("call1.sh", {"bench-0.5b": {"ready", "update", "kernels", "variant_agrees"}}),
        ("call2.sh", {"engine-tiny": {"engine_ready", "generate", "engine_agrees_with_trainer", "weight_sync", "engine_closed"}}),
        ("call3.sh", {"model": set(), "faster-0.5b": {"generate"}, "trl": {"trl"}}),
    ],
)
def test_calls_run_dry(call: str, only: dict[str, set[str]], tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    dry = {"DRY": "1", "OUT": str(tmp_path / "out"), "WORK": str(tmp_path / "work"), "ONLY": " ".join(only), "PATH": path}
    ran = subprocess.run(["bash", str(KIT / call), "800"], cwd=ROOT, env={**os.environ, **dry}, capture_output=True, text=True, timeout=850)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    results = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [(row["check"], row.get("rc")) for row in results] == [(name, 0) for name in only], ran.stdout
    assert set().union(*only.values()) <= {row["check"] for row in measurements(tmp_path / "out")}


# ------------------------------------------------------------------------------------------------------- preparing a machine


def test_pieces_are_joined_in_order_or_refused(load: Load) -> None:
    model, data = load("model"), bytes(range(256))
    model.PIECES.mkdir(parents=True)
    for number, start in ((10, 200), (9, 100), (1, 0)):
        (model.PIECES / f"model-{number}").write_bytes(data[start : start + 100])
    with pytest.raises(ValueError, match="do not add up"):
        model.joined_pieces()
    (model.PIECES / "model.sha256").write_text(hashlib.sha256(data).hexdigest() + "\n")
    assert model.joined_pieces() == data
    (model.PIECES / "model-9").unlink()
    with pytest.raises(ValueError, match="model-1, model-10"):
        model.joined_pieces()


def test_processes_of_a_check_are_ended_and_no_others(load: Load) -> None:
    asleep = [sys.executable, "-c", "print(flush=True); input()"]
    processes = [
        subprocess.Popen(asleep, env={**os.environ, "GPU_CHECK": mark}, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for mark in ("mine-1", "mine-12")
    ]
    mine, other = processes
    try:
        for process in processes:
            assert process.stdout is not None and process.stdout.readline()  # it has started, so its environment is the new one
        load("machine").end("mine-1")
        assert mine.poll() == -9
        assert other.poll() is None
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_environment_offers_grpo_beside_python(load: Load, tmp_path: Path) -> None:
    load("machine").environment(str(tmp_path / "environment"))
    bin_ = tmp_path / "environment" / "bin"
    code = "import sys, numpy; print(sys.prefix)"
    python = subprocess.run([bin_ / "python3", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert python.stdout.strip() in (str(tmp_path / "environment"), sys.prefix)
    path = {**os.environ, "PYTHONPATH": str(ROOT)}
    grpo = subprocess.run([bin_ / "grpo", "--help"], env=path, capture_output=True, text=True, timeout=60, check=True)
    assert "plan" in grpo.stdout
