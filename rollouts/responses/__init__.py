"""The target's own responses: the corpus that drafters are trained on."""
