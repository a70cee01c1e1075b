"""`python -m sage_queue` is `sage-queue`."""

from .cli import main

if __name__ == "__main__":
    main()
