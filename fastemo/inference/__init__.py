"""A trained model, used: on files, long videos, streams and frames in memory."""
