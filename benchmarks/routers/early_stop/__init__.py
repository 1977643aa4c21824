"""What `benchmarks.routers.stopping` is made of: chains, signals of acceptance, rules."""
