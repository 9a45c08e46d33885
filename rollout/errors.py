"""The errors of a rollout."""


class EngineError(RuntimeError):
    """An engine, a worker or a weight sync failed. The message says which one and what to do."""


class WeightSyncError(EngineError):
    """An engine does not provably hold the weights that the trainer sent."""
