"""`smoe serve` with fake_engine_process.py as its engine. Run as SCRIPT MODE and flags as name=value."""

import sys
import time
from pathlib import Path

from server.serve import StartError, serve
from server.settings import load_settings

if __name__ == "__main__":
    mode, *flags = sys.argv[1:]
    settings = load_settings(dict(flag.split("=", 1) for flag in flags))
    engine = (sys.executable, str(Path(__file__).with_name("fake_engine_process.py")), mode)
    try:
        sys.exit(serve(settings, time.monotonic(), engine))
    except StartError as error:
        sys.exit(f"smoe: {error}")
