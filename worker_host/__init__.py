"""The process on every host of engines."""
