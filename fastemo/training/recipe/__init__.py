"""What the keys of a training recipe do: optimiser and schedule, loss, averaged weights."""
