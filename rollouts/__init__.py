"""Decoding over prompts: `prompts decode peers traces replay responses report workers`."""
