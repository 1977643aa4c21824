"""Training of agents with Stable-Baselines3: networks, hyperparameters, callbacks, export."""
