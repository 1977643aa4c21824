"""Many devices draft, a server verifies: Multi-SPIN's cell over a real network."""
