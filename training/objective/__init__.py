"""Training objective: noise, targets, losses, output preservation."""
