"""A device: what it drafts with and writes, what it keeps of it, the channel that it reports."""
