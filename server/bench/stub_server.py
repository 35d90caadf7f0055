"""`smoe serve` with the stub engine, as its own process: `python -m server.bench.stub_server STEPS_PER_S`.

It listens on a free port and writes its URL to standard error, as `smoe serve` does.
"""

import sys
import time

from server.lifecycle.serve import serve
from server.settings.sources import load_settings


def main() -> int:
    """Entry point of the process."""
    settings = load_settings({"port": "0", "log_level": "warning"})
    command = (sys.executable, "-m", "server.bench.stub_engine", sys.argv[1])
    return serve(settings, time.monotonic(), command)


if __name__ == "__main__":
    sys.exit(main())
