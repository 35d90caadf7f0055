"""`smoe serve` with fake_engine_process.py as its engine. Run as SCRIPT MODE and flags as name=value; with
without_delays=yes among them engines are started again without a wait."""

import sys
import time
from pathlib import Path

from server.engine_client import restart_policy
from server.lifecycle.serve import StartError, serve
from server.settings_sources import load_settings

if __name__ == "__main__":
    mode, *flags = sys.argv[1:]
    given = dict(flag.split("=", 1) for flag in flags)
    if given.pop("without_delays", None):
        restart_policy.FIRST_DELAY_S = restart_policy.MAX_DELAY_S = 0.01
    settings = load_settings(given)
    engine = (sys.executable, str(Path(__file__).with_name("fake_engine_process.py")), mode)
    try:
        sys.exit(serve(settings, time.monotonic(), engine))
    except StartError as error:
        sys.exit(f"smoe: {error}")
