"""Training for servers: forecasts of what arms commit."""
