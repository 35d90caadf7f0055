"""deploy/systemd/smoe.service: systemd accepts it, and what it switches off leaves little to attack."""

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

from server.settings.settings import PREFIX, Settings
from tests.support.paths import ROOT

UNIT = ROOT / "deploy" / "systemd" / "smoe.service"
WORST_EXPOSURE = 20  # tenths, by `systemd-analyze security`: below it the unit counts as well protected


def sections() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, comment_prefixes=("#",), inline_comment_prefixes=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    return parser


@pytest.mark.systemd
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """With a program that exists here: systemd looks for it."""
    unit = tmp_path / "smoe.service"
    unit.write_text(UNIT.read_text().replace("/opt/smoe/bin/smoe", sys.executable).replace("User=smoe", "User=root"))
    checked = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


@pytest.mark.systemd
def test_the_unit_is_well_protected_by_systemds_own_measure() -> None:
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={WORST_EXPOSURE}", "--no-pager", UNIT]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.systemd
def test_the_unit_allows_the_system_call_that_its_group_does_not_have() -> None:
    """A call outside of the filter gets an error; systemd's default kills the process."""
    service = sections()["Service"]
    group, *others = service["SystemCallFilter"].split()
    listed = subprocess.run(["systemd-analyze", "syscall-filter", group], capture_output=True, text=True).stdout
    assert group == "@system-service" and "read" in listed
    assert "cachestat" in others and service["SystemCallErrorNumber"] == "EPERM"


def test_ranks_may_ask_for_the_addresses_of_their_host() -> None:
    """gloo and NCCL do, by getifaddrs(), which opens such a socket and fails without one."""
    assert "AF_NETLINK" in sections()["Service"]["RestrictAddressFamilies"].split()


def test_triton_writes_where_the_unit_lets_it() -> None:
    service = sections()["Service"]
    variable, _, directory = service["Environment"].partition("=")
    assert variable == "TRITON_CACHE_DIR" and directory.startswith(f"/var/lib/{service['StateDirectory']}/")


def test_the_unit_stops_later_than_the_server_and_does_not_restart_for_a_wrong_setting() -> None:
    service = sections()["Service"]
    assert int(service["TimeoutStopSec"]) > Settings().shutdown_timeout
    assert service["RestartPreventExitStatus"] == "2" and service["KillMode"] == "mixed"
    assert service["ExecReload"].split()[1] == "-HUP"


def test_the_unit_names_only_settings_that_exist() -> None:
    named = set(re.findall(rf"\b{PREFIX}[A-Z_]+", UNIT.read_text()))
    assert named and named <= {PREFIX + name.upper() for name in Settings.model_fields} | {"SMOE_API_KEY"}


def test_the_documented_commands_install_the_unit_that_exists() -> None:
    page = (ROOT / "docs" / "operation" / "deploy.md").read_text()
    assert f"cp {UNIT.relative_to(ROOT)} /etc/systemd/system/" in page
    assert sections()["Service"]["ExecStart"].startswith("/opt/smoe/bin/smoe") and "-m venv /opt/smoe" in page
