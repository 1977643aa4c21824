"""What drafters are trained on: responses of a target, and the target's states along them."""
