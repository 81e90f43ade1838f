"""The simulators that `sovfed bench simulation` compares: each a process that runs the same rounds on the same data."""
