"""Datasets: from a folder of pictures to the batches of an epoch. Knows files, sizes and captions, but no model."""
