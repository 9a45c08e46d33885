"""A tiny model of random weights, made in a second: sharp enough that looking at a wrong token shows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ROLES = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"

os.environ["GRPO_ALLOW_FAULTS"] = "1"  # a fault is still injected only where a test sets GRPO_FAULT

settings.register_profile("toolkit", deadline=None, max_examples=60)
settings.load_profile("toolkit")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault-rows", action="store_true", help="run the tests of every fault and print the table of faults with results")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--fault-rows"):
        from tests.faults.plugin import FaultRows

        config.pluginmanager.register(FaultRows())


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """Ray on this machine, as a run starts it."""
    from grpo.resources.ray_cluster import start_ray, stop_ray

    start_ray()
    yield
    stop_ray()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, the four tags, an end and a padding token: 262 in all, because so few texts teach no merges."""
    from grpo.config import Tags
    from grpo.resources.tiny_models import make_tokenizer

    return make_tokenizer(["Calculate 3 + 4.", " <think> 3+4=7 </think> <answer> 7 </answer>"], [], Tags())


@pytest.fixture(scope="session")
def tiny_qwen2(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Qwen2 with tied embeddings and biases."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(**_sizes(tokenizer), num_key_value_heads=2, tie_word_embeddings=True)
    return _saved(Qwen2ForCausalLM, config, tokenizer, tmp_path_factory.mktemp("tiny_qwen2"))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Llama with an output layer of its own, and two heads that share one of keys and values."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**_sizes(tokenizer), num_key_value_heads=1, tie_word_embeddings=False)
    return _saved(LlamaForCausalLM, config, tokenizer, tmp_path_factory.mktemp("tiny_llama"))


@pytest.fixture(scope="session")
def make_reward_model(tmp_path_factory: pytest.TempPathFactory, tokenizer) -> Callable[..., Path]:
    """A Qwen2 with a head for num_labels scores, saved with the tokenizer of the other tests."""

    def make(num_labels: int = 1, chat_template: str | None = ROLES, nan_token: int | None = None) -> Path:
        import torch
        from transformers import Qwen2Config, Qwen2ForSequenceClassification

        folder = tmp_path_factory.mktemp("reward_model")
        sizes = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2)
        config = Qwen2Config(
            vocab_size=len(tokenizer), **sizes, num_labels=num_labels, pad_token_id=tokenizer.pad_token_id, initializer_range=0.3
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            network = Qwen2ForSequenceClassification(config)
        if nan_token is not None:
            network.model.embed_tokens.weight.data[nan_token] = float("nan")
        network.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if chat_template:
            (folder / "chat_template.jinja").write_text(chat_template)
        return folder

    return make


def _sizes(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return dict(
        vocab_size=len(tokenizer),
        hidden_size=64,  # two heads of 32: the smallest that vLLM computes on a CPU
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )


def _saved(architecture: Any, config: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = architecture(config)
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases and norms begin at 0 and 1, which would hide a mistake with them
                parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
