"""Epoch x strength grid: which cells it has, how they are sampled, and how they are put on one page."""
