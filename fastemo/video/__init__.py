"""Decoding, caching, loading and augmentation of clips."""
