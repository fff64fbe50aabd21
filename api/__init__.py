"""The front end: management REST and the inference gateway."""
