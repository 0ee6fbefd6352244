"""How a clip's pixels reach the device."""
