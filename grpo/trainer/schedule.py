"""What is the learning rate of update u? A pure function, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math

from grpo.config import OptimizerKeys


def learning_rate_at(update: int, total_updates: int, settings: OptimizerKeys) -> float:
    """Learning rate of update ``update`` (the first is 0): a linear warm-up to the peak, then constant, linear or cosine.

    Linear and cosine fall to min_learning_rate on the last of ``total_updates``, or to 0 just after it: no update is made that learns nothing.
    With a minimum of 0 that is transformers' curve. Warm-up update u of w has (u + 1) / w of the peak.
    """
    peak, least = settings.learning_rate, settings.min_learning_rate
    if update < settings.warmup_updates:
        return peak * (update + 1) / settings.warmup_updates
    reaches_least = total_updates - (1 if least > 0 else 0)
    progress = (update - settings.warmup_updates) / max(1, reaches_least - settings.warmup_updates)
    match settings.lr_schedule:
        case "constant":
            return peak
        case "linear":
            return least + (peak - least) * (1 - min(1.0, progress))
        case "cosine":
            return least + (peak - least) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
