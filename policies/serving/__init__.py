"""Who chooses for a whole batch: rules that engines ship, and a rule in closed form."""
