"""A pytest plugin: the native backend's tests take the library that the variable names. Used by test_sanitizers.py."""

import os
from pathlib import Path

from model.ops.native import library

library.LIBRARY = Path(os.environ["SANITIZED_LIBRARY"])
