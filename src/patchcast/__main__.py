"""`python -m patchcast`."""

import sys

from patchcast.cli import main

sys.exit(main())
