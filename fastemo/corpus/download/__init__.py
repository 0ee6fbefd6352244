"""`fastemo download ravdess`: Zenodo's record -> verified archives -> clips in a folder."""
