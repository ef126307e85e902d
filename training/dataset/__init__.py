"""From a folder of pictures to the batches of an epoch; knows files, sizes and captions, but no model."""
