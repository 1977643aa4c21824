"""Scheduler environments: how much each of many users drafts, each round."""
