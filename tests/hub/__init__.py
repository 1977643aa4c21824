"""Sharing by the Hub."""
