"""Writes docs/configuration.md from the fields of `Settings`.

`python -m server.cli.configuration_docs > docs/configuration.md`, after a flag was added or changed.
"""

import sys
from collections.abc import Iterator
from itertools import groupby

from server.cli.foreign_words import FOREIGN_FLAGS
from server.settings.flags import SettingFlag, setting_flags

INTRODUCTION = """\
# Configuration

<!-- Generated: python -m server.cli.configuration_docs > docs/configuration.md -->

Every setting of `smoe serve` can be given in three ways:

| | example |
|---|---|
| flag | `smoe serve --max-num-seqs 32 --api-key one --api-key two` |
| environment variable: `SMOE_` and the name in capitals | `SMOE_MAX_NUM_SEQS=32 SMOE_API_KEY=one,two smoe serve` |
| key in the YAML file that `--config` or `SMOE_CONFIG` names | `max-num-seqs: 32` and `api-key: [one, two]` |

Flags override environment variables, which override the YAML file. An empty variable counts as unset. An unknown key in
the file is an error; an unknown `SMOE_` variable is named in a warning, since Kubernetes and other programs set
variables too. `smoe serve --print-config` prints each setting, its value and its source.

A flag without a value in the tables is a switch: `--verify`, `SMOE_VERIFY=1`, `verify: true`. A `SIZE` is a number of
bytes, or a number with a unit: `1GiB` is 1024³ bytes, `1GB` is 1000³. The model is an argument on the command line
(`smoe serve MODEL`), `SMOE_MODEL` in the environment and `model` in the file.
"""
OTHER_SERVERS = """
## Flags of other servers

Flags of vLLM and llama-server, and what does the same here. `smoe serve` answers these flags so, too.

| flag there | here |
|---|---|
"""
HEAD = "| flag | default | meaning |\n|---|---|---|\n"


def configuration_page() -> str:
    """Return the text of docs/configuration.md."""
    groups = groupby(setting_flags(), key=lambda flag: flag.group)
    tables = (f"\n## {title}\n\n{HEAD}{''.join(map(_row, flags))}" for title, flags in groups)
    return INTRODUCTION + "".join(tables) + OTHER_SERVERS + "".join(_rows_of_other_servers())


def _rows_of_other_servers() -> Iterator[str]:
    for hint, flags in groupby(FOREIGN_FLAGS, key=FOREIGN_FLAGS.__getitem__):
        yield f"| {', '.join(f'`{flag}`' for flag in flags)} | {hint} |\n"


def _row(flag: SettingFlag) -> str:
    name = "MODEL" if flag.name == "model" else f"{flag.flag} {flag.metavar}".rstrip()
    repeated = " May be repeated." if flag.is_repeatable else ""
    default = "off" if flag.is_switch and not flag.default else flag.default or "not set"
    cells = (f"`{name}`", default, flag.description + repeated)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


if __name__ == "__main__":
    sys.stdout.write(configuration_page())
