"""What a stranger wrote - a model, a completion, a recipe's name - runs nothing, commands no terminal and leaves the run's folder alone."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from grpo.config.load import load_recipe
from grpo.errors import RecipeError
from tests.end_to_end.conftest import Grpo, grpo  # noqa: F401 - a fixture
from tests.faults.conftest import scripted  # noqa: F401 - a fixture
from tests.rewards.models.stub_judge import Answer, serving

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN = {
    *(f"{module}.{name}" for module in ("pickle", "cloudpickle", "dill", "marshal") for name in ("load", "loads", "Unpickler")),
    *("torch.load", "joblib.load", "pandas.read_pickle", "shelve.open", "os.system", "os.popen", "eval"),
    *("yaml.unsafe_load", "yaml.full_load", "yaml.unsafe_load_all", "yaml.full_load_all"),
}
MAY_EXECUTE = {"rewards/code/sandbox_guest.py"}  # it is what runs an answer's code, inside the sandbox


def dangers(source: str, file: str) -> Iterator[str]:
    """Calls in ``source`` that would run what they read."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        arguments = [*map(ast.unparse, node.args), *keywords.values()]
        if (
            called in FORBIDDEN
            or (called == "exec" and file not in MAY_EXECUTE)
            or (called in ("yaml.load", "yaml.load_all") and not any("SafeLoader" in argument for argument in arguments))
            or keywords.get("trust_remote_code", "False") != "False"
            or keywords.get("allow_pickle", "False") != "False"
            or keywords.get("shell", "False") != "False"
        ):
            yield f"{file}:{node.lineno}: {ast.unparse(node)[:80]}"


def test_nothing_of_ours_unpickles_or_runs_what_it_reads() -> None:
    files = [file for room in ("grpo", "rewards", "rollout", "scripts", "examples") for file in (ROOT / room).rglob("*.py")]
    assert len(files) > 100
    found = [danger for file in files for danger in dangers(file.read_text(encoding="utf-8"), file.relative_to(ROOT).as_posix())]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "pickle.loads(raw)",
        "torch.load(file, weights_only=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "np.load(file, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
        "exec(text)",
    ],
)
def test_a_danger_would_be_found(code: str) -> None:
    assert len(list(dangers(code, "grpo/new.py"))) == 1
    assert list(dangers("yaml.load(text, Loader=yaml.SafeLoader)", "grpo/new.py")) == []


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_weights_in_a_pickle_are_refused_and_not_read(tiny_qwen2: Path, tmp_path: Path) -> None:
    from grpo.config import OptimizerKeys
    from grpo.pipeline.run import _model
    from grpo.trainer.policy_trainer import PolicyTrainer, TrainerSpec
    from rollout.engines.base import EngineSettings
    from rollout.engines.hf import HfEngine

    mark, folder = tmp_path / "ran", tmp_path / "model"
    shutil.copytree(tiny_qwen2, folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(RecipeError, match=r"holds no \*\.safetensors; weights in a pickle are not loaded"):
        _model(str(folder), "base", SimpleNamespace(context=SimpleNamespace(base=tmp_path)))
    with pytest.raises(OSError, match="safetensors"):
        PolicyTrainer(TrainerSpec(folder, OptimizerKeys(max_tokens_per_micro_batch=64), 1))
    with pytest.raises(OSError, match="safetensors"):
        HfEngine(EngineSettings(max_tokens=64)).load_model(folder, 0)
    assert not mark.exists()
    pickle.loads((folder / "pytorch_model.bin").read_bytes())
    assert mark.exists()  # it would have


BROUGHT = """
import sys
from pathlib import Path
from grpo.config import OptimizerKeys
from grpo.trainer.policy_trainer import PolicyTrainer, TrainerSpec
PolicyTrainer(TrainerSpec(Path(sys.argv[1]), OptimizerKeys(max_tokens_per_micro_batch=64), 1))
"""


def test_code_that_a_model_brings_is_not_run(tiny_qwen2: Path, tmp_path: Path) -> None:
    mark, folder = tmp_path / "ran", tmp_path / "model"
    shutil.copytree(tiny_qwen2, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "brought", "auto_map": {"AutoConfig": "brought.Config", "AutoModelForCausalLM": "brought.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "brought.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    command = [sys.executable, "-c", BROUGHT, str(folder)]
    result = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode != 0 and "custom code" in result.stderr
    assert not mark.exists()


ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m\r\x08"


def test_what_a_model_wrote_commands_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from grpo.run.progress import Progress

    with Progress(1) as progress:
        progress.say(f"  RuntimeError: cannot read {ESCAPES} [bold]\n  second line, 中文 ± ü")
    said = capsys.readouterr().out
    assert said == "  RuntimeError: cannot read \\x1b[2J\\x1b]0;owned\\x07\\x9b31m\\r\\x08 [bold]\n  second line, 中文 ± ü\n"


def test_commands_print_no_escapes_of_rows_rewards_and_errors(grpo: Grpo, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "mine.py").write_text(
        f"def shouts(completion, answer):\n    if 'b' in answer:\n        raise ValueError({ESCAPES!r})\n    return 1.0\n"
    )
    rows = [{"question": f"q{ESCAPES}", "answer": f"{letter}{ESCAPES}"} for letter in "abc"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tried = grpo("reward", "test", f"{tmp_path}/mine.py:shouts", "--data", tmp_path / "rows.jsonl")
    missing = grpo("export", f"nowhere{ESCAPES}", "--to", tmp_path / "out")
    assert "\\x1b" in tried.stdout and "\\x1b" in missing.stderr
    for text in (tried.stdout, tried.stderr, missing.stdout, missing.stderr):
        assert not {"\x1b", "\x07", "\x9b", "\r", "\x08"} & set(text)


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".hidden", "", "x\ny", "x" * 81])
def test_a_name_stays_in_the_runs_folder(name: str, scripted: Path) -> None:  # noqa: F811
    text = scripted.read_text()
    for old, new in (("name: scripted", f"name: {json.dumps(name)}"), ("name: reason", f"name: {json.dumps(name)}")):
        scripted.write_text(text.replace(old, new, 1))
        with pytest.raises(RecipeError) as refused:
            load_recipe(str(scripted))
        assert any("name: expected text" in problem for problem in refused.value.problems), refused.value.problems


@pytest.mark.slow
def test_secrets_stand_in_no_file_of_a_run_and_on_no_terminal(
    grpo: Grpo,  # noqa: F811
    scripted: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    secrets = {name: f"sk-{name.lower()}-0123456789" for name in ("JUDGE_KEY", "HF_TOKEN", "WANDB_API_KEY")}

    def answer(body: dict[str, Any], number: int) -> str | Answer:
        return Answer(status=400, body=f"wrong key {secrets['JUDGE_KEY']}") if number == 1 else f"SCORE: {1 + number % 5}"

    with serving(answer) as judge:
        use = f"[{{use: judge, base_url: '{judge.url}', model: m, key_env: JUDGE_KEY, temperature: 0.5, max_error_frac: 0.5}}]"
        changes = [f"stages.reason.rewards={use}", "stages.reason.steps=1", "stages.reason.prompts_per_step=2"]
        result = grpo("run", scripted, *changes, "--out", tmp_path / "run", env=secrets)
    assert result.returncode == 0, result.stdout + result.stderr
    assert judge.keys and set(judge.keys) == {f"Bearer {secrets['JUDGE_KEY']}"}
    said = [result.stdout, result.stderr, *(file.read_text(errors="replace") for file in (tmp_path / "run").rglob("*") if file.is_file())]
    assert len(said) > 10 and any("key_env: JUDGE_KEY" in text for text in said)
    assert [secret for secret in secrets.values() if any(secret in text for text in said)] == []
    assert oct(os.stat(tmp_path / "run" / "recipe.yaml").st_mode & 0o002) == "0o0"  # and nobody else can write there
