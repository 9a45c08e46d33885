"""Rewards that are rules: nothing but the completion and the row decides."""
