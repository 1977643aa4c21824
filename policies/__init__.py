"""Who chooses, asked by Stable-Baselines3's `predict`: `routers`, `schedulers`, `multispin`."""
