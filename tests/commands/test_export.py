"""Is an exported model whole, by itself, never over something else, and does its card say where it comes from?"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo.commands.export import export_model
from grpo.errors import CheckpointError

RECIPE = {
    "name": "small",
    "description": "a | run with <b>markup</b>",
    "model": "org/base",
    "data": {"sums": {"general": True}},
    "stages": [
        {"name": "cold", "kind": "sft", "from": "base", "data": "sums"},
        {"name": "other", "kind": "sft", "from": "base", "data": "sums"},
        {"name": "harvest", "kind": "reject", "from": "cold", "prompts": "sums"},
        {"name": "last", "kind": "sft", "from": "base", "data": ["harvest"]},
        {"name": "unfinished", "kind": "rl", "from": "last", "prompts": "sums"},
    ],
}
MADE = {"cold": "01-cold/model", "other": "02-other/model", "harvest": "03-harvest/data", "last": "04-last/model"}
ACCURACY = {"eval/accuracy_before": 0.1, "eval/accuracy_after": 0.25, "eval/accuracy_se": 0.01}


@pytest.fixture
def run(tmp_path: Path, tiny_qwen2: Path) -> Path:
    """A run's folder as a run leaves it, four of its five stages done."""
    folder = tmp_path / "run"
    for stage, output in MADE.items():
        if stage == "harvest":
            (folder / output).mkdir(parents=True)
        else:
            shutil.copytree(tiny_qwen2, folder / output)
    stages = [
        {**stage, "status": "complete" if stage["name"] in MADE else "pending", "output": MADE.get(stage["name"]), "metrics": {}}
        for stage in RECIPE["stages"]
    ]
    stages[3]["metrics"] = ACCURACY
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    (folder / "summary.json").write_text(json.dumps({"recipe": "small", "status": "running", "stages": stages}))
    return folder


def test_a_runs_last_model_is_copied_and_loads(run: Path, tiny_qwen2: Path, tmp_path: Path) -> None:
    exported = export_model(str(run), str(tmp_path / "out"))
    assert (exported.source, exported.how) == (run / "04-last" / "model", "copied")
    mine, theirs = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (tmp_path / "out", tiny_qwen2))
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").encode("3 + 4") == AutoTokenizer.from_pretrained(tiny_qwen2).encode("3 + 4")


def test_the_card_names_what_the_model_comes_from_and_nothing_else(run: Path, tmp_path: Path) -> None:
    """last learns from harvest, which cold wrote; other and unfinished have no part in it."""
    export_model(str(run), str(tmp_path / "out"))
    text = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["base_model"] == "org/base" and front["library_name"] == "transformers"
    rows = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if line.startswith("| ")]
    assert rows == ["stage", "cold", "harvest", "last"]
    assert "| last | sft | base | harvest | 0.100 → 0.250 ± 0.010 |" in text
    assert "<b>" not in text and "a \\| run" in text


def test_a_stage_is_chosen_by_name_or_by_folder(run: Path, tmp_path: Path) -> None:
    assert export_model(str(run), str(tmp_path / "a"), "cold").source == run / "01-cold" / "model"
    assert export_model(str(run / "02-other"), str(tmp_path / "b")).source == run / "02-other" / "model"
    assert "# small, stage other" in (tmp_path / "b" / "README.md").read_text()


def test_an_adapter_is_folded_into_its_base(tiny_qwen2: Path, tmp_path: Path) -> None:
    """y = x (W + alpha / rank B A): the exported model computes what base and adapter compute together, to bfloat16's rounding."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_qwen2, dtype=torch.float32), LoraConfig(r=4, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path / "adapter")
    assert export_model(str(tmp_path / "adapter"), str(tmp_path / "out")).how == "merged"
    tokens = torch.arange(1, 17)[None]
    with torch.no_grad():
        together, base = model(tokens).logits, AutoModelForCausalLM.from_pretrained(tiny_qwen2, dtype=torch.float32)(tokens).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)(tokens).logits
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    assert (merged - together).abs().mean() < 0.1 * (base - together).abs().mean()


def damaged(run: Path) -> None:
    weights = run / "04-last" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def without_weights(run: Path) -> None:
    weights = run / "04-last" / "model" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))


def with_a_shard_missing(run: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (run / "04-last" / "model" / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "message"),
    [(damaged, "model.safetensors is damaged"), (without_weights, "pickle"), (with_a_shard_missing, "model-2.safetensors")],
)
def test_a_damaged_model_is_refused_and_nothing_is_left(damage: Callable[[Path], None], message: str, run: Path, tmp_path: Path) -> None:
    damage(run)
    with pytest.raises(CheckpointError, match=message):
        export_model(str(run), str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == []


def test_nothing_is_written_over(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep me")
    with pytest.raises(CheckpointError, match="is there already"):
        export_model(str(run), str(tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("ref", "stage", "message"),
    [
        ("nowhere", None, "no folder"),
        ("run", "colt", "did you mean 'cold'"),
        ("run", "unfinished", "no such model"),
        ("run/03-harvest", None, "holds no model"),
        ("run/01-cold", "cold", "for a run's folder"),
    ],
)
def test_what_is_no_model_is_named(ref: str, stage: str | None, message: str, run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        export_model(str(tmp_path / ref), str(tmp_path / "out"), stage)
