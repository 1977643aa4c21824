"""Drafters: EAGLE-3, DFlash, small LM, prompt lookup; their checkpoints and training."""
