"""GGUF files: what they say, and how they become ordinary Hugging Face folders."""
