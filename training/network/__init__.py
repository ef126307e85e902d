"""Adapters: which layers get one, what it computes, how it sits beside the layer, and how it is written to a file."""
