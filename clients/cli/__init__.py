"""Commands of an institution, and of everybody who uses a model or proposes a task."""
