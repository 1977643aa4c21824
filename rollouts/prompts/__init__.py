"""Prompts to decode: the two shipped sets, or a file of the user's."""
