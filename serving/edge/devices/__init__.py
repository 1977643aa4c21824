"""A device as a command: what it writes, what it keeps of it, the channel that it reports."""
