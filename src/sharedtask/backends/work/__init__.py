"""What a worker of any kind does with a chunk, and what its caller writes and reads for that."""
