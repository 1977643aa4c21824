"""Rounds from traces, without a model: replay, prices, the exact optimum."""
