"""The generic decoder: transformers' own pass of any causal LM, behind the same interface."""
