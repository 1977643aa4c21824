"""Inside transformers' generate()."""
