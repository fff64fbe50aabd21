"""One file per cloud behind one protocol. None yet."""
