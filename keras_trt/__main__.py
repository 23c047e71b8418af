"""`python -m keras_trt` is the command `keras-trt`."""

import sys

from .cli.main import main

sys.exit(main())
