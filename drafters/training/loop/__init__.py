"""The training loop: updates, learning rate, measurement, saves, the card."""
