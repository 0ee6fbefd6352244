"""A configuration -> a tested model in a folder: one run, or many."""
