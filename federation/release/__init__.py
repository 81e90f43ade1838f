"""A model that is given away: one file with all that is said of it, signed, which anybody checks without a network."""
