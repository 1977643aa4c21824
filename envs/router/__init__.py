"""Router environments: which arm drafts, each round; live and replayed."""
