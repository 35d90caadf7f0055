"""The npm packages openai and ai in a Node program. `make test` installs them if npm is found."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.servers.running import RunningServer

FOLDER = Path(__file__).parent / "node"


@pytest.mark.node
@pytest.mark.parametrize("script", ["openai.test.mjs", "ai.test.mjs"])
def test_a_node_client_works_unchanged(server: RunningServer, script: str) -> None:
    environment = os.environ | {"SMOE_URL": server.url, "AI_SDK_LOG_WARNINGS": "false"}
    done = subprocess.run(
        ["node", "--test", script], cwd=FOLDER, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "# pass 0" not in done.stdout, "no test was run"
