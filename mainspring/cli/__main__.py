"""`python -m mainspring.cli`: the same as the `mainspring` command."""

import sys

from mainspring.cli import main

sys.exit(main())
