"""Running real decoding over prompts: evaluating, generating, tuning."""
