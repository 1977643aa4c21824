"""Policies that choose draft lengths for many users: rules and trained schedulers."""
