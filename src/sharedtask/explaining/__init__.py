"""What is inside a value and how it travels: walked, weighed, told as a table."""
