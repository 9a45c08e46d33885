"""How new weights reach the engines, and the proof that they did."""
