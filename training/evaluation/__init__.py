"""Evaluation of a run: fixed losses, early stopping, divergence."""
