"""Decisions of the gateway, without I/O: where a request goes, and whether it may be sent again."""
