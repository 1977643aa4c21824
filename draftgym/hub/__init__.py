"""Drafters, policies and traces on the Hugging Face Hub."""
