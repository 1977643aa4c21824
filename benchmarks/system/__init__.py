"""Measurements of the decoding system: speed, losslessness, switching, overhead."""
