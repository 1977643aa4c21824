"""Who chooses the drafter each round; all with Stable-Baselines3's `predict` shape."""
