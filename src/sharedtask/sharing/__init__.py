"""Getting a value into memory that every worker can see, and knowing that it is still right."""
