"""What real pairs say about value ranges and decision margins, and the precision that follows from it."""
