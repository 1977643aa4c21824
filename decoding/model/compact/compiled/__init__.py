"""Passes that OpenVINO compiles for the processor."""
