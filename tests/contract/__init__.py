"""What is published, read by those who did not write it."""
