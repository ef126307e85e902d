"""Tensors apart from training: number formats, copies between devices, method patches, files' headers."""
