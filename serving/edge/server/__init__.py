"""The server: its streams, its rounds, and the cell that schedulers see."""
