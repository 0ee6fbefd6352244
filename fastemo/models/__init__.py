"""Float clips -> logits: the models and their pretrained weights."""
