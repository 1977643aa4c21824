"""Training of the neural drafters: corpus, objectives and the loop that drives them."""
