"""Cells: many users with devices of their own, around one server that verifies."""
