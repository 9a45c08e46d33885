"""GRPO in about a hundred lines, without recipe, Ray or vLLM: the algorithm with nothing around it.

    python examples/01_grpo_in_100_lines.py [--steps 60]

A one-layer model of random weights learns to continue a digit with the digit that follows it. Everything that a step does is on this page,
except the mathematics, which is the toolkit's own: advantages, token weights, the clipped surrogate, k3.
"""

from __future__ import annotations

import argparse
import copy

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from grpo.algorithm.advantages import group_zscore
from grpo.algorithm.kl import k3
from grpo.algorithm.losses import clipped_surrogate, token_weights

DIGITS, END = 10, 10  # tokens 0..9 are digits, 10 ends a completion
P, G, MAX_TOKENS = 10, 8, 3  # prompts a step, samples a prompt, longest completion
CLIP, KL_COEF, LEARNING_RATE = 0.2, 0.001, 3e-3


def make_policy(seed: int) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=DIGITS + 1, max_position_embeddings=16, **sizes))


@torch.no_grad()
def sample(policy: Qwen2ForCausalLM, prompts_B: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Completions [B, MAX_TOKENS] and the mask of tokens that count: all up to and with the end token."""
    tokens = prompts_B[:, None]
    for _ in range(MAX_TOKENS):
        probabilities = policy(tokens).logits[:, -1].softmax(-1)
        tokens = torch.cat([tokens, torch.multinomial(probabilities, 1, generator=generator)], dim=1)
    completions = tokens[:, 1:]
    ended_before = (completions == END).cumsum(dim=1) - (completions == END).int()
    return completions, ended_before == 0


def reward_of(prompt: int, completion: list[int]) -> float:
    """1 for exactly the next digit and then the end; 0.2 for starting with it."""
    following = (prompt + 1) % DIGITS
    if completion[:2] == [following, END]:
        return 1.0
    return 0.2 if completion[0] == following else 0.0


def logprobs(model: Qwen2ForCausalLM, prompts_B: torch.Tensor, completions_BT: torch.Tensor) -> torch.Tensor:
    """Log-probability of each completion token, [B, T]: column t of the logits predicts token t + 1."""
    tokens = torch.cat([prompts_B[:, None], completions_BT], dim=1)
    return model(tokens[:, :-1]).logits.log_softmax(-1).gather(-1, completions_BT[:, :, None]).squeeze(-1)


def main() -> float:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    steps = parser.parse_args().steps
    policy = make_policy(seed=0)
    reference = copy.deepcopy(policy).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    mean_reward = 0.0
    for step in range(1, steps + 1):
        # 1. G samples of each prompt: row i * G + j is sample j of prompt i
        prompts_B = torch.arange(P).repeat_interleave(G)
        completions_BT, mask_BT = sample(policy, prompts_B, generator)
        # 2. a reward for each sample
        rewards_B = torch.tensor([reward_of(p, c) for p, c in zip(prompts_B.tolist(), completions_BT.tolist(), strict=True)])
        # 3. advantages within each group
        rewards_PG = rewards_B.view(P, G)
        advantages_B = group_zscore(rewards_PG, torch.ones_like(rewards_PG, dtype=torch.bool)).view(-1).float()
        # 4. one update on the clipped objective; it is the first of its rollout, so the old log-probabilities are the current ones
        new_BT = logprobs(policy, prompts_B, completions_BT)
        with torch.no_grad():
            reference_BT = logprobs(reference, prompts_B, completions_BT)
        surrogate_BT = clipped_surrogate(new_BT - new_BT.detach(), advantages_B[:, None], CLIP, CLIP)
        weights_BT = token_weights(mask_BT, "sequence_mean", max_tokens=MAX_TOKENS).float()
        loss = ((surrogate_BT + KL_COEF * k3(new_BT, reference_BT)) * weights_BT).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        mean_reward = rewards_B.mean().item()
        if step % 10 == 0 or step == 1:
            print(f"step {step:3d}  reward {mean_reward:.2f}  loss {loss.item():+.4f}")
    return mean_reward


if __name__ == "__main__":
    main()
