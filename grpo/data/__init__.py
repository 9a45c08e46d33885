"""Rows and what becomes of them: sources, templates, the order in which a run meets them."""
