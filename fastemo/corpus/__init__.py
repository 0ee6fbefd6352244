"""The corpus: its clips, their labels and the train/val/test splits."""
