"""Float clips -> logits: the models and the weights they start from."""
