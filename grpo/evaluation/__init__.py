"""How good a model is: sampling and grading held-out problems."""
