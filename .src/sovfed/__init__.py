"""sovfed: a nation's institutions train one model together, and no record leaves home."""

__version__ = "0.1.0"
