"""One file per library that can run an artifact."""
