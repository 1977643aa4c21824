"""Training routers: reinforcement learning on rounds, and regression on traces."""
