"""A small image-and-text target that anyone can make, and what drafters gain on it."""
