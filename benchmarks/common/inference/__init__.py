"""The parts of the benchmark of inference."""
