"""`python -m exlstm` is `exlstm`."""

import sys

from exlstm.cli import main

sys.exit(main())
