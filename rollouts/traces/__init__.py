"""Traces: what every arm would have done at every position of texts that the target wrote."""
