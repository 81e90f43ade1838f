"""The trainer: the only process that reads records; what it admits, masks and answers."""
