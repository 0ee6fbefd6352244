"""What lies in a folder: the files that may be clips, and what really decodes of each."""
