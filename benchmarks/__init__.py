"""Measurements that stand behind the README's claims; each is a command."""
