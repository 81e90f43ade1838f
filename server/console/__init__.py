"""The agency's console: a web page over its home, in a process of its own."""
