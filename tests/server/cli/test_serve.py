"""Settings as --print-config shows them, and the form of a failed start."""

import json
import subprocess
import sys

import pytest

from server.cli.serve import format_setting
from server.settings.sources import load_settings
from tests.support.ports import free_port


def test_a_key_is_never_shown() -> None:
    settings = load_settings({"api_key": ["secret", "other"]})
    assert [format_setting(settings, name) for name in ("api_key", "port", "threads")] == ["2 of them", "8000", "-"]


def test_a_setting_in_json_is_shown_as_it_may_be_given() -> None:
    given = '{"temperature": 0.7}'
    assert format_setting(load_settings({"override_generation_config": given}), "override_generation_config") == given
    assert format_setting(load_settings({}), "override_generation_config") == "-"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["/nope"], "/nope"),
        (["--ssl-certfile", __file__, "--ssl-keyfile", __file__], "not a certificate and its key"),
    ],
)
def test_a_failed_start_is_a_line_of_the_log(monkeypatch: pytest.MonkeyPatch, flags: list[str], message: str) -> None:
    monkeypatch.setenv("SMOE_LOG_FORMAT", "json")
    monkeypatch.setenv("SMOE_PROT", "1")
    command = [sys.executable, "-m", "server", "serve", "--port", str(free_port()), *flags]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in (ran.stdout + ran.stderr).splitlines()]
    assert (ran.returncode, lines[-1]["level"]) == (2, "error")
    assert message in lines[-1]["message"]
    assert lines[0]["level"] == "warning" and "SMOE_PROT" in lines[0]["message"]
