"""The command `llm` (simonw/llm) with the server as one of its extra OpenAI models."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.servers.running import MODEL, RunningServer

MODELS = """\
- model_id: local
  model_name: {model}
  api_base: {url}/v1
  api_key_name: local
"""


@pytest.mark.parametrize("flags", [[], ["--no-stream"]])
def test_the_command_answers(server: RunningServer, tmp_path: Path, flags: list[str]) -> None:
    (tmp_path / "extra-openai-models.yaml").write_text(MODELS.format(model=MODEL, url=server.url))
    command = [sys.executable, "-m", "llm", "-m", "local", "--key", "unused", "-o", "temperature", "0", *flags]
    environment = os.environ | {"LLM_USER_PATH": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(
        [*command, "Count from 3 to 7."], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "3 4 5 6 7"
