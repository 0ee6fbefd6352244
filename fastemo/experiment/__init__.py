"""From a configuration to a tested model in a run folder: one run, or many."""
