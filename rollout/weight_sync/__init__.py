"""Weight sync: how new weights reach the engines, and the proof that they did."""
