"""Where trained policies leave the building: servers, and what other programs load."""
