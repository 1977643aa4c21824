"""Continuous batching: texts join and leave between rounds, one ragged pass verifies all."""
