"""The reinforcement-learning loop: rollouts, scores, advantages, updates, weight pushes."""
