"""``python -m lightning_znorm`` is ``lightning-znorm``."""

from lightning_znorm.cli import main

if __name__ == "__main__":
    main()
