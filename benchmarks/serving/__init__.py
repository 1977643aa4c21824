"""Servers under load: speed beside others, and soak."""
