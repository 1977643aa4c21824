"""EAGLE-3 (arXiv 2503.01840): an autoregressive head on the target's own hidden states."""
