"""Pytest plugin of test_sanitizers.py: loads the native library from $SANITIZED_LIBRARY."""

import os
from pathlib import Path

from model.ops.native import library

library.LIBRARY = Path(os.environ["SANITIZED_LIBRARY"])
