"""How Holdfast is installed. Today: from a checkout, by the Makefile."""
