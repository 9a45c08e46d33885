"""The trainer: a model, its log-probabilities over packed rows, and the update."""
