"""Many runs from one grid: a study file -> run folders, and what they say together."""
