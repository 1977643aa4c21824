"""Drafters: EAGLE-3, DFlash, small LM, two that copy; their checkpoints and training."""
