"""Real decoding over prompts: `prompts decode traces replay responses report`."""
