"""Helpers without knowledge of recipes or models."""
