"""What workflows ask for: one file per kind of side effect."""
