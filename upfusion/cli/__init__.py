"""The command line: one file per verb. Knows everything; nobody imports it."""
