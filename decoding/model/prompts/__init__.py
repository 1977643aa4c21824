"""From what people write, and show, to the token ids and pixels that a target reads."""
