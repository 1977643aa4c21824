"""What drafters are trained for: losses on recorded text, and VSD."""
