"""Gradients for differential privacy: the clipped per-person gradient sum of one step. No noise is added here."""
