"""Security mutants: one line broken on purpose, and the tests that must notice. `make mutants` runs them."""
