"""`python -m autoformer_zoo` is the command `autoformer-zoo`."""

import sys

from autoformer_zoo.cli.main import main

sys.exit(main())
