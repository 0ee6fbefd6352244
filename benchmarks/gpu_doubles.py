"""The old place of `benchmarks.common.gpu.doubles`, for tests/video; goes with their next change."""

from benchmarks.common.gpu.doubles import RecordingTransfer as RecordingTransfer
