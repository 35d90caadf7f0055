"""The command as a process, forked or started: help, version, and one line for each error."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from server.cli.main import HELP_ORDER
from server.settings.flags import setting_flags
from server.settings.settings import GROUPS, Settings
from tests.support.forked.commands import run
from tests.support.paths import ROOT


def started(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def smoe(*arguments: str, run: Callable[..., Any] = run, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, forked or `started`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SMOE_")}
    command = [sys.executable, "-m", "server", *arguments]
    ended: subprocess.CompletedProcess[str] = run(command, cwd=ROOT, env=environment | variables, timeout=60)
    return ended


@pytest.mark.parametrize("arguments", [("--help",), ("serve", "--help"), ("health", "--help"), ("--version",)])
def test_help_loads_nothing_heavy(arguments: tuple[str, ...]) -> None:
    script = (
        "import sys\n"
        f"sys.argv = ['smoe', *{arguments!r}]\n"
        "from server.cli.main import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    heavy = {'torch', 'fastapi', 'yaml', 'uvicorn', 'msgspec', 'rich', 'asyncio', 'ssl'} & set(sys.modules)\n"
        "    assert not heavy, heavy\n"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout


def test_help_lists_every_command_in_order_with_a_whole_sentence() -> None:
    lines = smoe("--help").stdout.partition("Commands:\n")[2].splitlines()
    assert tuple(line.split()[0] for line in lines) == HELP_ORDER
    assert all(line.endswith(".") and not line.endswith("...") for line in lines)


def test_help_has_the_flag_and_the_text_of_every_setting() -> None:
    result = smoe("serve", "--help", COLUMNS="400", TERMINAL_WIDTH="400").stdout
    words = " ".join(result.split())
    for name in Settings.model_fields.keys() - {"model"}:
        assert f"--{name.replace('_', '-')} " in words
    for flag in setting_flags():
        assert " ".join(flag.help_text.split()).replace("- ", "-") in words.replace("- ", "-")


def test_the_flags_of_serve_stand_in_groups_and_its_own_options_last() -> None:
    lines = smoe("serve", "-h").stdout.splitlines()
    titles = [line.removesuffix(":") for line in lines if line and not line.startswith((" ", "Usage"))]
    assert titles == ["Arguments", *GROUPS.values(), "Options"]
    assert not [line for line in lines if "--rope-theta SECONDS" in line]
    flags = {line.split()[0]: number for number, line in enumerate(lines) if line.startswith("  --")}
    groups = {flag.flag: flag.group for flag in setting_flags() if flag.name != "model"}
    for flag, group in groups.items():
        above = [line.removesuffix(":") for line in lines[: flags[flag]] if line.removesuffix(":") in titles]
        assert above[-1] == group, flag


def test_the_short_flags_are_the_usual_ones() -> None:
    assert smoe("-V", run=started).stdout == smoe("--version").stdout != ""
    assert smoe("bench", "serve", "-h").stdout.startswith("Usage: smoe bench serve ")


COMMANDS = (
    "run", "top", "explain", "serve", "plan", "models", "experts", "chat", "complete", "run-batch", "doctor", "health",
    "bench serve", "bench chart", "bench kernels", "bench engine",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_has_an_example(command: str) -> None:
    result = smoe(*command.split(), "--help", run=started)
    assert result.returncode == 0
    assert f"\n  smoe {command} " in result.stdout
    assert not re.search(r"<(str|int|float|path)>", result.stdout), "values are named in words"


@pytest.mark.parametrize(
    ("arguments", "variables", "part"),
    [
        (("serve", "--port", "70000"), {}, "--port: "),
        (("serve",), {"SMOE_PORT": "tcp://10.0.0.1:8000"}, "enableServiceLinks"),
        (("serve", "/no/where"), {}, "/no/where"),
        (("serve", "org/name"), {"HF_HOME": "/no/where"}, "hf download org/name"),
        (("serve", "--config", "/no/where.yaml"), {}, "/no/where.yaml"),
        (("serve", "--api-key-file", "/no/where"), {}, "--api-key-file: cannot be read"),
        (("serve",), {"SMOE_API_KEY_FILE": "/dev/null"}, "SMOE_API_KEY_FILE: has no keys"),
    ],
)
def test_a_server_that_cannot_start_exits_2_with_one_line(
    arguments: tuple[str, ...], variables: dict[str, str], part: str
) -> None:
    result = smoe(*arguments, **variables)
    assert result.returncode == 2
    [line] = result.stderr.splitlines()
    assert line.startswith("smoe: ")
    assert part in line


@pytest.mark.parametrize("level", ["1", "2"])
def test_a_server_without_assertions_refuses_to_start_in_one_line(level: str) -> None:
    refused = smoe("serve", "--port", "0", run=started, PYTHONOPTIMIZE=level, PYTHONDONTWRITEBYTECODE="1")
    assert (refused.returncode, refused.stdout) == (2, "")
    [line] = refused.stderr.splitlines()
    assert line.startswith("smoe: ") and "python -O" in line


def test_an_unknown_flag_exits_2() -> None:
    result = smoe("serve", "--no-such-flag", run=started)
    assert result.returncode == 2
    assert "--no-such-flag" in result.stderr


def test_print_config_shows_values_and_sources_and_starts_nothing() -> None:
    result = smoe("serve", "--print-config", "--port", "1", "--api-key", "hush", SMOE_HOST="::1")
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()}
    assert result.returncode == 0
    assert rows["port"] == ["1", "--port"] and rows["host"] == ["::1", "SMOE_HOST"]
    assert rows["log-level"] == ["info", "default"]
    assert "hush" not in result.stdout


@pytest.mark.parametrize("arguments", [("serve", "--nope"), ("serve", "--port"), ("nope",)], ids=str)
def test_an_invalid_command_line_gets_one_line_and_exit_code_2(arguments: tuple[str, ...]) -> None:
    refused = smoe(*arguments)
    assert refused.returncode == 2
    assert refused.stderr.startswith("smoe: ") and refused.stderr.count("\n") == 1
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [("--version",), ("--help",), ("plan",)], ids=str)
def test_output_that_a_full_disk_loses_is_reported_in_one_line(arguments: tuple[str, ...], unbuffered: str) -> None:
    command = [sys.executable, "-m", "server", *arguments]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        lost = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (lost.returncode, lost.stderr) == (2, "smoe: standard output: No space left on device\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_runs_with_closed_streams_and_writes_into_no_file_of_its_own(closed: str) -> None:
    script = (
        "import os, sys\n"
        "sys.argv = ['smoe', 'plan']\n"
        "from server.cli.main import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    os._exit(int(os.open(os.devnull, os.O_RDONLY) <= 2) or 2 * int(str(sys.exception()) != '0'))\n"
    )
    shell = ["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, script]
    ended = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
