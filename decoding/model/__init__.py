"""The target: a language model as one ragged pass over cached sequences."""
