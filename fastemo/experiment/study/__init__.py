"""Studies: from a study file to the run folders of a grid, and their comparison."""
