"""`python -m prefloop` is the `prefloop` command."""

from .cli import main

if __name__ == "__main__":
    main()
