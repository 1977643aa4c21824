"""The serving environment, who plays it, and how batches are planned."""
