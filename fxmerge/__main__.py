"""`python -m fxmerge`: the command, where its script is not on the path."""

import sys

from fxmerge.cli import main

sys.exit(main())
