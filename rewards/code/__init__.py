"""The code reward and its sandbox."""
