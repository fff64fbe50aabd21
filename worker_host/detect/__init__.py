"""What this host has: one file per vendor, one schema (``fleet.inventory``)."""
