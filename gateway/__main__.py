"""`python -m gateway` is `nbd-gateway`."""

import sys

from gateway.cli import main

sys.exit(main())
