"""Measurements of schedulers, and Multi-SPIN's own figures."""
