"""Drafters: EAGLE-3, DFlash, prompt lookup; their checkpoints and training."""
