"""What a graph costs to run: operations, bytes, memory, and the time they take at best."""
