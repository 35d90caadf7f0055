"""Pytest plugin for tests of a library that another test has built: loads it from $NATIVE_LIBRARY."""

import os
from pathlib import Path

from model.ops.native import library

library.LIBRARY = Path(os.environ["NATIVE_LIBRARY"])
