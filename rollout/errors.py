"""What can go wrong in a rollout."""


class EngineError(RuntimeError):
    """An engine, a worker or a weight sync failed; the message says which, and what to do."""


class WeightSyncError(EngineError):
    """The weights an engine holds are not provably those that the trainer sent."""
