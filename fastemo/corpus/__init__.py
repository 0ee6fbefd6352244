"""Which clips exist, what they show, who may be trained on."""
