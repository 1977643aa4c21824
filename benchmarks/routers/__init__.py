"""Measurements of routing."""
