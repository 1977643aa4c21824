"""The text that is being written: turns of a talk, where it stops, pieces as they come."""
