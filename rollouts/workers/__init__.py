"""Who writes the shards of a folder: this process, or workers of a Ray cluster."""
