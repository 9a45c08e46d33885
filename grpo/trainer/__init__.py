"""The policy model and its updates: log-probs, packing, attention, memory, ranks."""
