"""The built-in corpus: faces generated from action units, encoded like RAVDESS."""
