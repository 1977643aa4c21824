"""Real decoding of prompts: many policies side by side, one text, batches of plain texts."""
