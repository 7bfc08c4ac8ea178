"""`python -m fxmerge`: the command, where its script is not on the path."""

from fxmerge.cli import main

main()
