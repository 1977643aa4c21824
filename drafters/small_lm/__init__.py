"""The small LM: an ordinary language model that drafts without any of the target's states."""
