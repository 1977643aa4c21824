"""What all training shares: the trainer, what happens beside learning, settings."""
