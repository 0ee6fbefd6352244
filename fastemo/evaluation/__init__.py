"""Evaluation: metrics, uncertainty, comparisons and probes."""
