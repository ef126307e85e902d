"""Estimates before a run: its curve and file, its activations, and what fits into memory."""
