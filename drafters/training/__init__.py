"""Training of the neural drafters. Rooms: `data`, `objectives`, `loop`."""
