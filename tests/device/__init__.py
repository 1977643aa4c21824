"""Everything of a session lies on its target's device."""
