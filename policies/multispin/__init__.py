"""The scheduling problem of Multi-SPIN (arXiv 2606.04581): its model, beliefs, closed forms."""
