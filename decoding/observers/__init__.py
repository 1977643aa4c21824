"""What a policy sees before it decides, and how its decision becomes a round."""
