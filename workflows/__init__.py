"""What must become and stay true: one file per long-running entity."""
