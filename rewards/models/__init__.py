"""Rewards that a model gives: a judge behind an endpoint, or a reward model."""
