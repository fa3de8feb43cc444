"""``python -m lamella`` is ``lamella``."""

from lamella.cli import main

main()
