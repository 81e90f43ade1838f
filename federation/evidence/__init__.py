"""What happened, so that nobody can rewrite it alone: the audit log of each side, cosigned heads, release certificates."""
