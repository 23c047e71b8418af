"""`python -m keras_trt` is the command `keras-trt`."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
