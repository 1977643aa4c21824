"""Policies for batches on a running server: what they see of it, and how they are loaded."""
