"""How Holdfast is installed: from a checkout, by the Makefile; a host also as a service (join tokens come with it)."""
