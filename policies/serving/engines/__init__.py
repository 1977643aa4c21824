"""What engines can be told of a policy: draft lengths by batch size, in their own formats."""
