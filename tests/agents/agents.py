"""Each coding agent gets an answer from a real server, and its second run finds its prompt in the prefix cache.

The server has a copy of the bundled model that takes 65,536 tokens and ends its answers at a line's end.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agents.programs import AGENTS, CONTEXT, MODEL, Agent
from tests.support.paths import ROOT
from tests.support.servers.running import RunningServer, start_server

PROGRAMS = Path(__file__).parent / "node" / "node_modules" / ".bin"
FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.model", "tokenizer_config.json")
END_IDS = [2, 3]  # the end token, and the line's end
TIMEOUT_S = 300


def changed(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("demo")
    for name in FILES:
        shutil.copy(ROOT / "model" / "demo" / name, folder)
    changed(folder / "config.json", max_position_embeddings=CONTEXT)
    changed(folder / "generation_config.json", eos_token_id=END_IDS)
    with start_server("--served-model-name", MODEL, "--tool-emulation", model=str(folder)) as running:
        yield running


def run(agent: Agent, arguments: tuple[str, ...], url: str, home: Path) -> str:
    """Start the program in its home directory, wait for its end, and return what it wrote."""
    environment = {name: value.replace("@URL@", url) for name, value in agent.environment.items()}
    done = subprocess.run(
        [PROGRAMS / agent.program, *(argument.replace("@URL@", url) for argument in arguments)],
        cwd=home,
        env={"PATH": os.environ["PATH"], "HOME": str(home), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.program)
def test_an_agent_gets_an_answer_and_later_finds_its_prompt_cached(
    server: RunningServer, agent: Agent, tmp_path: Path
) -> None:
    for name, text in agent.files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text.replace("@URL@", server.url))
    if agent.set_up:
        run(agent, agent.set_up, server.url, tmp_path)
    shares: list[float] = []
    for _ in range(2):
        before = server.settled_metrics()
        run(agent, agent.arguments, server.url, tmp_path)
        after = server.settled_metrics()
        assert refused(after) == refused(before)
        grown = [after[name, ()] - before[name, ()] for name in ("smoe_prompt_tokens_total", CACHED)]
        assert grown[0] > 0 and after["smoe_generation_tokens_total", ()] > before["smoe_generation_tokens_total", ()]
        shares.append(grown[1] / grown[0])
    assert shares[1] > 0.9, shares


CACHED = "smoe_prompt_tokens_cached_total"


def refused(values: dict[tuple[str, tuple[tuple[str, str], ...]], float]) -> dict[object, float]:
    """Return the numbers of responses with a status from 400."""
    return {
        key: value
        for key, value in values.items()
        if key[0] == "smoe_http_requests_total" and dict(key[1])["status"] >= "400"
    }
