"""Training of agents. Rooms: `common`, `router`, `scheduler`, `serving`."""
