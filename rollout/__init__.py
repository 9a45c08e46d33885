"""Rollouts: engines that turn prompts into completions, a pool of Ray workers around them, and weight syncs that are proven.

Importing this package loads neither torch nor ray nor vllm.
"""

from rollout.errors import EngineError, WeightSyncError
from rollout.types import Completion, Finished, Prompt, Request, SamplingParams

Sampling = SamplingParams  # the name of earlier versions

__all__ = ["Completion", "EngineError", "Finished", "Prompt", "Request", "Sampling", "SamplingParams", "WeightSyncError"]
