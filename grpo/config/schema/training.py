"""The trainer's processes, the machines to plan for, and the keys of every stage that trains."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from grpo.config.schema.base import Fraction, Hint, NonNegativeFloat, Strict
from grpo.config.schema.model import Lora

Shard = Literal["none", "gradients", "parameters"]


class Trainer(Strict):
    """The processes that train the policy, and what each of them holds."""

    ranks: Annotated[PositiveInt, Hint("processes that share every update, one per GPU")] = Field(
        1, description="Number of processes that share every update: one per GPU, or each with some of a CPU's cores."
    )
    shard: Annotated[Shard, Hint("gradients: ZeRO 2; parameters: ZeRO 3")] = Field(
        "none",
        description="What is sharded over the ranks. gradients: gradients and optimizer state (ZeRO 2). parameters: the parameters too (ZeRO 3).",
    )
    precision: Literal["bfloat16", "float32"] = Field(
        "bfloat16", description="Precision of matrix products. The master weights are always float32."
    )
    offload_optimizer: bool = Field(False, description="Keep the optimizer state in host memory between updates (GPUs only).")
    compile: bool = Field(False, description="Fuse norms and feed-forward layers with torch.compile.")


class Hardware(Strict):
    """The machines that the recipe is meant for, as `grpo plan` assumes them. What is left out is taken from this machine."""

    nodes: PositiveInt = Field(1, description="Number of identical machines.")
    gpus: Annotated[int, Field(ge=0)] | None = Field(None, description="Number of GPUs of one machine.")
    gpu_memory_gib: PositiveFloat | None = Field(None, description="Memory of one GPU, in GiB.")
    cpus: PositiveInt | None = Field(None, description="Number of CPU cores of one machine.")
    memory_gib: PositiveFloat | None = Field(None, description="Main memory of one machine, in GiB.")
    disk_gib: PositiveFloat | None = Field(None, description="Free disk space at the run's folder, in GiB.")
    tflops: Annotated[PositiveFloat | None, Hint("what one device sustains in bfloat16 matrix products")] = Field(
        None, description="Sustained bfloat16 matrix throughput of one device, in TFLOP/s, from which times are estimated."
    )
    bandwidth_gb_s: Annotated[PositiveFloat | None, Hint("what one device reads from its memory")] = Field(
        None, description="Memory bandwidth of one device, in GB/s, from which times are estimated."
    )


class OptimizerKeys(Strict):
    """The keys of every stage that trains."""

    learning_rate: PositiveFloat = Field(1e-6, description="Highest learning rate, which is reached after the warm-up.")
    warmup_updates: Annotated[int, Field(ge=0)] = Field(
        0, description="Number of updates over which the learning rate rises linearly from 0."
    )
    lr_schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant",
        description="How the learning rate falls after the warm-up. It reaches min_learning_rate on the last update, or 0 just after it.",
    )
    min_learning_rate: NonNegativeFloat = Field(
        0.0, description="Learning rate at which linear and cosine end. With 0 the last update still learns, as in transformers."
    )
    weight_decay: NonNegativeFloat = Field(0.0, description="Weight decay of the matrices. Norms and biases have none.")
    adam_beta1: Fraction = Field(0.9, description="Adam's decay rate of the mean gradient.")
    adam_beta2: Fraction = Field(0.95, description="Adam's decay rate of the mean squared gradient.")
    max_grad_norm: PositiveFloat = Field(1.0, description="Maximum norm of the gradient. A longer gradient is scaled down to it.")
    max_tokens_per_micro_batch: PositiveInt | None = Field(
        None,
        description="Maximum number of tokens in one forward and backward pass. By default it is what fits, from the model's shapes and the "
        "machine's memory.",
    )
    checkpoint_every: Annotated[PositiveInt | None, Hint("steps (rl) or updates between checkpoints")] = Field(
        10, description="Number of steps between checkpoints. With null only a run that is stopped leaves one."
    )
    keep_checkpoints: Annotated[int, Field(ge=2), Hint("the newest ones, which stay until the stage is done")] = Field(
        2, description="Number of newest checkpoints that are kept until the stage is done, beside the best one."
    )
    lora: Lora | None = Field(None, description="Train low-rank adapters instead of all weights.")
    gradient_checkpointing: bool = Field(
        False,
        description="Keep only the input of each layer and recompute the rest in the backward pass, which takes less memory and more time.",
    )
