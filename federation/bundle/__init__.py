"""One signed file with all that a machine without a network needs: made, checked, installed, taken back."""
