"""Prompt lookup: copies what followed the same words earlier in the text."""
