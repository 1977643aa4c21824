"""Who chooses, by Stable-Baselines3's `predict`: `routers schedulers multispin serving`."""
