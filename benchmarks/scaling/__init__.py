"""What several workers and processes do that one does alone."""
