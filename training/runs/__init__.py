"""Runs: their files, their metadata, those that train now, and those that are read again."""
