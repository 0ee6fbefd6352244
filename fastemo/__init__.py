"""fastemo: emotion recognition in short face videos, at the speed of the hardware."""

__version__ = "0.1.0"
