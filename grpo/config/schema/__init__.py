"""The schema of a recipe: every key with its type, its default and its meaning, one file per section. Imports nothing heavy."""
