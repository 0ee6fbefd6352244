"""What the package is measured with."""
