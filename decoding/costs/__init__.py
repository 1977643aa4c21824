"""The cost model: seconds of every piece of a round, measured on this host."""
