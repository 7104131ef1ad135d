"""``python -m scoresde``: the command line."""

from scoresde.app.cli import main

main()
