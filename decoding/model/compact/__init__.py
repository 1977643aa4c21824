"""The compact decoder: our own pass over the weights of the architectures that it knows."""
