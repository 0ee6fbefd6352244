"""A trained model in the forms that other programs use: exported files, the Hugging Face Hub."""
