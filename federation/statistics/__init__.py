"""Statistics of a federation: tables of counts as one noised sum, asked for under an order like any private run."""
