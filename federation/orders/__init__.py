"""What a run asks of institutions, as one document that people sign: the order, the proposal, the answers."""
