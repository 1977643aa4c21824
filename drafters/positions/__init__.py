"""Drafting at many positions of one text at once: for traces, training and measurements."""
