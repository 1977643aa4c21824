"""Measurements that stand behind `docs/results`; each is a command."""
