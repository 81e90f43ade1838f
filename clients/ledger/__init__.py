"""What an institution lets be learnt about the persons of its population: a ledger that is never rewritten."""
