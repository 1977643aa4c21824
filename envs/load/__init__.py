"""Requests that arrive at a server, and the rounds in which it writes them, from traces."""
