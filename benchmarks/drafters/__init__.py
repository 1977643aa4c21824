"""Measurements of drafters and the objectives that train them."""
