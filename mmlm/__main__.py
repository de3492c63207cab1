"""`python -m mmlm`: the command line."""

import sys

from mmlm.cli import main

sys.exit(main())
