"""What NVFlare runs with its own Python: the echo at the institution, and who submits it."""
