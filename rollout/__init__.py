"""Rollouts: engines that turn prompts into completions, the Ray pool around them, and weight syncs that are proven.

Importing this package loads neither torch nor ray nor vllm.
"""

from rollout.errors import EngineError, WeightSyncError
from rollout.types import Completion, Finished, Prompt, Request, Sampling

__all__ = ["Completion", "EngineError", "Finished", "Prompt", "Request", "Sampling", "WeightSyncError"]
