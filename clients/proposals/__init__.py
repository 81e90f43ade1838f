"""A task proposed from an institution's own file."""
