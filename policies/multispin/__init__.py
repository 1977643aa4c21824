"""Multi-SPIN's closed forms, the baselines around them, and schedulers made of both."""
