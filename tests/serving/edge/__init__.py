"""Devices and a server on loopback."""
