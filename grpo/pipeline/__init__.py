"""A whole run: the order of stages, their models, and Ray."""
