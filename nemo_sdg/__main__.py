"""`torchrun ... -m nemo_sdg VERB ...` and `python -m nemo_sdg VERB ...`."""

import sys

from nemo_sdg.cli import main

if __name__ == "__main__":
    sys.exit(main())
