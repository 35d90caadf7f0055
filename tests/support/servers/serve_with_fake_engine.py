"""`smoe serve` with fake_engine_process.py as its engine. Run as SCRIPT MODE NAME=VALUE ...

The names are flags of `smoe serve`; without_delays=yes restarts the engine without a delay, throughput_s=N logs the
throughput every N seconds, early_hangup=yes sends the first process SIGHUP before it has an event loop.
"""

import os
import signal
import sys
import time
from pathlib import Path

from server.engine_client import restart_policy
from server.lifecycle.errors import StartError
from server.lifecycle.restart.early_hangup import EarlyHangup
from server.lifecycle.serve import serve
from server.lifecycle.standard_streams import open_closed_streams
from server.observability import throughput_log
from server.settings.sources import load_settings

if __name__ == "__main__":
    open_closed_streams()
    mode, *flags = sys.argv[1:]
    given = dict(flag.split("=", 1) for flag in flags)
    if given.pop("without_delays", None):
        restart_policy.FIRST_DELAY_S = restart_policy.MAX_DELAY_S = 0.01
    if seconds := given.pop("throughput_s", None):
        throughput_log.INTERVAL_S = int(seconds)
    is_hung_up = given.pop("early_hangup", None) and "LISTEN_FDS" not in os.environ
    settings = load_settings(given)
    hangup = EarlyHangup()
    if is_hung_up:
        os.kill(os.getpid(), signal.SIGHUP)
    command = (sys.executable, str(Path(__file__).with_name("fake_engine_process.py")), mode)
    try:
        sys.exit(serve(settings, time.monotonic(), command, hangup=hangup))
    except StartError as error:
        sys.exit(f"smoe: {error}")
