"""What training of routers and schedulers shares: run folders, learners, callbacks."""
