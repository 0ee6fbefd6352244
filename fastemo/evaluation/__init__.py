"""What a model got right."""
