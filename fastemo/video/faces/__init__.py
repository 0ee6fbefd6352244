"""Faces: found in frames, linked from frame to frame, one box a clip."""
