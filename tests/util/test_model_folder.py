"""Everything that is wrong with a model's folder is told at once, by name, whoever asks; and nothing is said of a folder that is right."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from grpo.cli import app
from grpo.commands.export import export_model
from grpo.config.load import load_recipe
from grpo.errors import RecipeError
from grpo.pipeline.run import run_recipe
from grpo.plan.models import check_models, model_problems
from grpo.util.model_folder import EXPONENTS, nonfinite_tensors, stored_tensors

UP = "model.layers.1.mlp.up_proj.weight"
RECIPE = """
name: s
model: {path: model}
template: plain
data: {rows: {jsonl: rows.jsonl}}
stages:
  - {name: teach, kind: sft, data: rows, epochs: 1, max_tokens: 64}
"""


@pytest.fixture
def folder(tiny_qwen2: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_qwen2, tmp_path / "model"))


@pytest.fixture
def recipe(folder: Path, tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1 + 1", "completion": "2", "answer": "2"}\n')
    (tmp_path / "s.yaml").write_text(RECIPE)
    return tmp_path / "s.yaml"


def rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def settings(folder: Path, name: str, **changes: object) -> None:
    file = folder / name
    file.write_text(json.dumps({**(json.loads(file.read_text()) if file.exists() else {}), **changes}))


def a_tensor_is_missing(folder: Path) -> None:
    rewritten(folder, lambda weights: weights.pop(UP))


def a_tensor_is_too_many(folder: Path) -> None:
    rewritten(folder, lambda weights: weights.update({f"{UP}_scale_inv": torch.ones(2)}))


def a_tensor_has_another_shape(folder: Path) -> None:
    rewritten(folder, lambda weights: weights.update({UP: torch.ones(3, 5)}))


def a_number_is_none(folder: Path) -> None:
    rewritten(folder, lambda weights: weights[UP][7].fill_(float("nan")))


def the_file_is_cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def the_file_is_a_pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")


def a_shard_is_missing(folder: Path) -> None:
    settings(folder, "model.safetensors.index.json", weight_map={UP: "model.safetensors", "lm_head.weight": "model-2.safetensors"})


def a_shard_lacks_a_tensor(folder: Path) -> None:
    settings(folder, "model.safetensors.index.json", weight_map={UP: "model.safetensors", "nobody.weight": "model.safetensors"})


def weights_are_pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def weights_are_gguf(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "tiny.gguf")
    (folder / "config.json").unlink()


def it_is_an_adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")


def it_is_quantized(folder: Path) -> None:
    settings(folder, "config.json", quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})


def no_tokenizer_is_there(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()


def nothing_is_there(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def it_is_a_run(folder: Path) -> None:
    shutil.copytree(folder, folder.parent / "made")
    nothing_is_there(folder)
    shutil.move(folder.parent / "made", folder / "01-reason" / "model")
    settings(folder, "summary.json", stages=[{"name": "reason", "output": "01-reason/model"}, {"name": "measure", "output": None}])


def nobody_knows_the_architecture(folder: Path) -> None:
    settings(folder, "config.json", model_type="novel")


def the_config_is_cut(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "qwen2",')


DAMAGES = {
    a_tensor_is_missing: f"the weights lack {UP}, which would be random",
    a_tensor_is_too_many: f"the weights hold {UP}_scale_inv, which the model of config.json does not have",
    a_tensor_has_another_shape: f"other shapes than config.json says: {UP} [3, 5] instead of [64, 64]",
    a_number_is_none: f"model.safetensors holds NaN or infinity in {UP}; download it again",
    the_file_is_cut: "model.safetensors is damaged: ",
    the_file_is_a_pointer: "a Git LFS pointer and not the file; fetch it with git lfs pull",
    a_shard_is_missing: "model.safetensors.index.json names model-2.safetensors, which is not there",
    a_shard_lacks_a_tensor: "names tensors that their shards lack: nobody.weight",
    weights_are_pickled: "holds no *.safetensors; weights in a pickle are not loaded: save it anew with save_pretrained; found pytorch_model.bin",
    weights_are_gguf: "GGUF files (tiny.gguf) are not read",
    it_is_an_adapter: "an adapter without its base model; fold it first, with grpo export",
    it_is_quantized: "config.json has quantization_config (fp8): quantized weights are not trained",
    no_tokenizer_is_there: "there is no tokenizer, none of [tokenizer.json,",
    nothing_is_there: "holds no model, neither config.json nor *.safetensors; name a folder as save_pretrained writes it; found []",
    it_is_a_run: "the folder of a run; its model is ",
    nobody_knows_the_architecture: "has model type `novel` but Transformers does not recognize this architecture; take another model",
    the_config_is_cut: "config.json is not JSON",
}


def test_nothing_is_said_of_a_folder_that_is_right(tiny_qwen2: Path, tiny_llama: Path) -> None:
    assert model_problems(tiny_qwen2, "a") == [] == model_problems(tiny_llama, "b")


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_each_damage_is_named_in_one_line_where_the_recipe_names_the_model(damage: Callable[[Path], None], recipe: Path) -> None:
    damage(recipe.parent / "model")
    (problem,) = check_models(load_recipe(str(recipe)))
    assert "s.yaml:3: model: model 'model': " in problem and DAMAGES[damage] in problem and "\n" not in problem


def test_all_that_is_wrong_is_told_together(folder: Path) -> None:
    for damage in (it_is_quantized, no_tokenizer_is_there, a_number_is_none):
        damage(folder)
    (folder / "generation_config.json").write_text("{")
    problems = model_problems(folder, "m")
    for part in ("quantization_config (fp8)", "there is no tokenizer", "generation_config.json is not JSON", f"NaN or infinity in {UP}"):
        assert [problem for problem in problems if part in problem], part
    assert len(problems) == 4


def test_every_command_says_it_with_2_and_without_a_traceback(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    it_is_quantized(recipe.parent / "model")
    a_number_is_none(recipe.parent / "model")
    monkeypatch.chdir(recipe.parent)
    commands = [
        ["plan", "s.yaml"],
        ["run", "s.yaml"],
        ["eval", "model", "--data", "rows.jsonl", "--engine", "hf"],
        ["export", "model", "--to", "out"],
    ]
    for command in commands:
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 2, result.output
        assert "quantization_config (fp8)" in result.stderr and f"NaN or infinity in {UP}" in result.stderr
        assert "Traceback" not in result.stderr
    assert sorted(path.name for path in recipe.parent.iterdir()) == ["model", "rows.jsonl", "s.yaml"]


def test_an_expert_that_is_missing_is_named(tokenizer, tmp_path: Path) -> None:
    """transformers makes one tensor of a layer's experts, and stops with a traceback where one of them is not there."""
    from tests.trainer.families import write_family

    folder = write_family("Qwen3Moe", tokenizer, tmp_path / "moe")
    gone = "model.layers.0.mlp.experts.2.up_proj.weight"
    rewritten(folder, lambda weights: weights.pop(gone))
    (problem,) = model_problems(folder, "moe")
    assert f"the weights lack {gone}, which would be random" in problem


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.bfloat16, "BF16"), (torch.float16, "F16"), (torch.float32, "F32"), (torch.float64, "F64")]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_the_last_number_of_any_float_is_looked_at(dtype: torch.dtype, name: str, value: float, tmp_path: Path) -> None:
    """All other bits set, as the largest finite number has them, is no NaN."""
    largest = torch.tensor([torch.finfo(dtype).max, torch.finfo(dtype).min, 0.0], dtype=dtype)
    wrong = torch.zeros(1001, dtype=dtype)
    wrong[-1] = value
    save_file({"largest": largest, "wrong": wrong, "whole": torch.arange(3)}, tmp_path / "model.safetensors")
    (line,) = nonfinite_tensors(tmp_path)
    assert "model.safetensors holds NaN or infinity in wrong;" in line
    assert {tensor.dtype for tensor in stored_tensors(tmp_path / "model.safetensors")} == {name, "I64"} and name in EXPONENTS


def test_a_model_that_was_tied_and_kept_its_output_layer_is_right(folder: Path) -> None:
    rewritten(folder, lambda weights: weights.update({"lm_head.weight": weights["model.embed_tokens.weight"].clone()}))
    assert model_problems(folder, "m") == []


def test_a_run_with_too_few_positions_is_refused_as_its_plan_is(recipe: Path) -> None:
    """256 positions; prompts of up to 200 tokens and completions of up to 100 need 300."""
    stage = "{name: teach, kind: rl, prompts: rows, steps: 1, prompts_per_step: 1, samples_per_prompt: 2, max_prompt_tokens: 200, "
    stage += "max_completion_tokens: 100, rewards: [{use: math}]}"
    changes = [f"stages=[{stage}]", "rollout.engine=hf"]
    for ask in (lambda: check_models(load_recipe(str(recipe), changes)), lambda: run_recipe(str(recipe), changes, recipe.parent / "run")):
        try:
            found = ask()
        except RecipeError as error:
            found = error.problems
        assert any("sequences of up to 300 tokens, and model has 256 positions" in problem for problem in found)
    assert not (recipe.parent / "run").exists()


def test_positions_are_read_under_other_names_too() -> None:
    from grpo.util.model_folder import positions_of

    assert positions_of({"n_positions": 64}) == 64 and positions_of({"text_config": {"max_position_embeddings": 8}}) == 8
    assert positions_of({"vocab_size": 3}) is None


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        ("[q_proj, o_prj]", "o_prj (no such layer; did you mean 'o_proj'?)"),
        ("[q_proj, embed_tokens]", "embed_tokens (of type Embedding)"),
        ("[lm_head]", "lm_head (the output layer)"),
        ("[q_proj, mlp]", "mlp (of type Qwen2MLP)"),
    ],
)
def test_each_target_that_takes_no_adapter_is_named_before_anything_is_loaded(targets: str, told: str, recipe: Path) -> None:
    (problem,) = check_models(load_recipe(str(recipe), [f"stages.teach.lora={{targets: {targets}}}"]))
    assert f"lora.targets match no linear layer of Qwen2ForCausalLM: {told}; its linear layers are down_proj," in problem


def test_settings_that_transformers_does_not_save_are_kept_as_they_were(folder: Path, tmp_path: Path) -> None:
    """temperature without do_sample, as released models have it; and one that stands in config.json."""
    from grpo.config import OptimizerKeys
    from grpo.trainer.policy_trainer import PolicyTrainer, TrainerSpec

    settings(folder, "generation_config.json", temperature=0.9, top_p=0.6, eos_token_id=[3, 4])
    PolicyTrainer(TrainerSpec(folder, OptimizerKeys(), 1, num_threads=1)).save(tmp_path / "made")
    assert (tmp_path / "made" / "generation_config.json").read_text() == (folder / "generation_config.json").read_text()
    (folder / "generation_config.json").unlink()
    settings(folder, "config.json", temperature=0.9)
    PolicyTrainer(TrainerSpec(folder, OptimizerKeys(), 1, num_threads=1)).save(tmp_path / "again")
    assert model_problems(tmp_path / "again", "again") == []


def test_an_adapter_is_not_folded_into_a_damaged_base(folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from grpo.errors import CheckpointError

    get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(r=2, task_type="CAUSAL_LM")).save_pretrained(
        tmp_path / "adapter"
    )
    a_number_is_none(folder)
    with pytest.raises(CheckpointError, match="NaN or infinity in"):
        export_model(str(tmp_path / "adapter"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_written_model_that_is_another_is_refused_with_names_and_removed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from grpo.config import OptimizerKeys
    from grpo.errors import TrainingError
    from grpo.trainer import policy_trainer as room
    from grpo.trainer.policy_trainer import PolicyTrainer, TrainerSpec

    def writes_wrongly(weights: object, *rest: object) -> None:
        room_write([(name, weight + 0.01 if name == UP else weight) for name, weight in weights], *rest)  # type: ignore[attr-defined]

    room_write = room.write_folder
    monkeypatch.setattr(room, "write_folder", writes_wrongly)
    with pytest.raises(TrainingError, match=f"is not the one that was trained: it has another {UP};"):
        PolicyTrainer(TrainerSpec(folder, OptimizerKeys(), 1, num_threads=1)).save(tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_a_written_model_that_computes_something_else_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights, and another setting beside them: rope_theta, or a multiplier."""
    from grpo.config import OptimizerKeys
    from grpo.errors import TrainingError
    from grpo.trainer import policy_trainer as room
    from grpo.trainer.policy_trainer import PolicyTrainer, TrainerSpec

    room_write = room.write_folder

    def with_other_settings(weights: object, model: object, start: Path, made: Path) -> None:
        room_write(weights, model, start, made)  # type: ignore[arg-type]
        settings(made, "config.json", rope_parameters={"rope_type": "default", "rope_theta": 3.0})

    monkeypatch.setattr(room, "write_folder", with_other_settings)
    with pytest.raises(
        TrainingError, match=r"computes something else than what was trained: its log-probabilities differ by [0-9.]+ a token"
    ):
        PolicyTrainer(TrainerSpec(folder, OptimizerKeys(), 1, num_threads=1)).save(tmp_path / "made")


def test_a_routers_bias_is_handed_out_in_float32(tokenizer, tmp_path: Path) -> None:
    """Released biases are near 5, where bfloat16 has steps of 1/32; the spread among experts is of that size."""
    from grpo.config import OptimizerKeys
    from grpo.trainer.policy_trainer import PolicyTrainer, TrainerSpec
    from rollout.weight_sync.weights import unpack_weights
    from tests.trainer.families import write_family

    folder = write_family("DeepseekV3", tokenizer, tmp_path / "start")
    bias = "model.layers.1.mlp.gate.e_score_correction_bias"
    rewritten(folder, lambda weights: weights.update({bias: torch.tensor([5.0, 5.01, 4.99, 5.003])}))
    trainer = PolicyTrainer(TrainerSpec(folder, OptimizerKeys(), 1, num_threads=1))
    sent = unpack_weights(trainer.export_weights(1))
    trainer.save(tmp_path / "made")
    for found in (sent, load_file(tmp_path / "made" / "model.safetensors")):
        assert found[bias].dtype == torch.float32 and found["lm_head.weight"].dtype == torch.bfloat16
        np.testing.assert_array_equal(found[bias].numpy(), np.array([5.0, 5.01, 4.99, 5.003], dtype=np.float32))
