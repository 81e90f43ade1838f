"""What happened, so that nobody can rewrite it alone: the log of each side, and heads that the others cosign."""
