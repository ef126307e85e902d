"""Epoch x strength pictures: which cells, how they are sampled, and how they are put on one page."""
