"""What a plain forward pass of transformers says, to compare with, and trainers of the tiny model.

Models are made double for comparisons: autocast leaves float64 alone, so nothing is rounded to bfloat16 and what is compared is the layout.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo.algorithm import GRPO, Algorithm
from grpo.config import OptimizerKeys, Trainer
from grpo.trainer.attention import ATTENTION, ordinary_attention
from grpo.trainer.policy_trainer import PolicyTrainer, TrainerSpec
from rollout.types import SamplingParams

PlainLogprobs = Callable[..., torch.Tensor]
MakeTrainer = Callable[..., PolicyTrainer]


@pytest.fixture
def plain_logprobs() -> PlainLogprobs:
    """Log-probabilities [L] of a completion: its sequence alone in one row, logits everywhere, the ordinary causal mask."""

    def logprobs(model: Any, prompt: Sequence[int], completion: Sequence[int], temperature: float = 1.0) -> torch.Tensor:
        tokens = torch.tensor([[*prompt, *completion]], device=model.device)
        with ordinary_attention(model):
            logprobs_LV = (model(tokens).logits[0].double() / temperature).log_softmax(dim=-1)
        return logprobs_LV[range(len(prompt) - 1, tokens.shape[1] - 1), completion]

    return logprobs


@pytest.fixture(params=["tiny_qwen2", "tiny_llama"])
def model(request: pytest.FixtureRequest) -> Any:
    """Each of the tiny models, in float64."""
    from transformers import AutoModelForCausalLM

    return exactly(AutoModelForCausalLM.from_pretrained(request.getfixturevalue(request.param), attn_implementation=ATTENTION))


def exactly(model: Any) -> Any:
    """The model in float64 throughout. transformers' norms go through float32, whose rounding would hide, or look like, an error."""

    def norm(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon))

    for module in model.double().modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = types.MethodType(norm, module)
    return model


@pytest.fixture
def make_trainer(tiny_qwen2: Path) -> MakeTrainer:
    """A trainer of the tiny Qwen2. ``exact`` makes it float64 throughout; further keywords are the optimizer's."""

    def make(
        algorithm: Algorithm | None = GRPO,
        *,
        temperature: float = 1.0,
        total_updates: int = 10,
        exact: bool = True,
        layout: Trainer = Trainer(),  # noqa: B008 - frozen
        **optimizer: Any,
    ) -> PolicyTrainer:
        sampling = SamplingParams(max_tokens=1, temperature=temperature)
        trainer = PolicyTrainer(TrainerSpec(tiny_qwen2, OptimizerKeys(**optimizer), total_updates, algorithm, sampling, layout=layout))
        if exact:
            exactly(trainer.model)
            if trainer.reference is not None:
                exactly(trainer.reference)
        return trainer

    return make
