"""`python -m sovfed` is the command `sovfed`."""

from sovfed.cli import main

if __name__ == "__main__":
    main()
