"""Training schedulers on cells, and comparing them."""
