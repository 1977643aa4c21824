"""What drafters are trained for: losses on recorded text, replay, and VSD."""
