"""`smoe explain` against a server: its numbers are those of an independent forward pass."""

import json
import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from transformers import MixtralForCausalLM

from tests.support.forked import commands
from tests.support.kernels.routed_oracle import forward, gate_logits
from tests.support.paths import DEMO, ROOT
from tests.support.servers.running import RunningServer

TEXT = "It was not in her power to"
TOLERANCE = 1e-3  # of logits of about 1 to 10, in float32
TIMEOUT_S = 120
NUMBER = re.compile(r"-?\d+\.\d+")


@pytest.fixture(scope="module")
def demo() -> Any:
    torch.set_num_threads(1)
    return MixtralForCausalLM.from_pretrained(DEMO, dtype=torch.float32, attn_implementation="eager").eval()


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "server", "explain", "smoe-demo", *arguments]


def explain(*arguments: str) -> subprocess.CompletedProcess[str]:
    return commands.run(command(*arguments), timeout=TIMEOUT_S)


@pytest.mark.parametrize(("off", "expected_ks"), [((), [1, 2, 8]), (("0:3", "2:5", "2:6"), [1, 2])])
def test_logits_experts_and_weights_equal_an_independent_forward_pass(
    server: RunningServer, demo: Any, off: tuple[str, ...], expected_ks: list[int]
) -> None:
    ids = server.post("/tokenize", {"prompt": TEXT}).json()["tokens"]
    result = explain(TEXT, "--url", server.url, "--json", *(part for name in off for part in ("--off", name)))
    assert (result.returncode, result.stderr) == (0, "")
    runs = json.loads(result.stdout)["runs"]
    assert [run["experts_per_token"] for run in runs] == expected_ks
    mask = [[f"{layer}:{expert}" not in off for expert in range(8)] for layer in range(5)] if off else None
    for run in runs:
        k, gates = run["experts_per_token"], run["gates"]
        expected = gate_logits(demo, ids, k, mask)
        shown = torch.tensor([[gate["logits"] for gate in layers] for layers in gates])
        assert torch.allclose(shown, expected, atol=TOLERANCE)
        routing = forward(demo, ids, k, mask)[1]
        assert [[gate["experts"] for gate in layers] for layers in gates] == routing
        weights = torch.tensor([[gate["weights"] for gate in layers] for layers in gates])
        assert torch.allclose(weights, expected.gather(-1, torch.tensor(routing)).softmax(-1), atol=TOLERANCE)


def test_the_tables_name_every_token_and_end_in_a_worked_layer(server: RunningServer) -> None:
    started = command(TEXT, "--url", server.url)
    result = subprocess.run(started, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    tokens = [line for line in result.stdout.splitlines() if line.startswith("token ")]
    assert len(tokens) == len(server.post("/tokenize", {"prompt": TEXT}).json()["tokens"])
    assert "k = 1" in result.stdout and "k = 8" in result.stdout and "\x1b" not in result.stdout
    assert "5. output of the layer's mixture: " in result.stdout


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--off", "2"), "LAYER:EXPERT"),
        (("--off", "5:0"), "0:0 to 4:7"),
        (("--token", "99"), "--token 99"),
        (("--experts-per-token", "9"), "1 to 8"),
    ],
)
def test_a_wrong_flag_is_one_line(server: RunningServer, arguments: tuple[str, ...], part: str) -> None:
    result = explain(TEXT, "--url", server.url, *arguments)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith("smoe: ") and part in result.stderr


def test_the_numbers_of_the_page_about_mixtral_are_those_of_the_bundled_model(server: RunningServer) -> None:
    """Bars and words are equal, numbers within a rounding of their last digit."""
    blocks = re.findall(r"^```text\n(.*?)^```", (ROOT / "docs" / "mixtral.md").read_text(), re.MULTILINE | re.DOTALL)
    shown = explain("It was not in her power to", "--url", server.url, "--token", "5").stdout
    for line in "".join(blocks).splitlines():
        alike = [ours for ours in shown.splitlines() if NUMBER.sub("#", ours) == NUMBER.sub("#", line)]
        values = [float(number) for number in NUMBER.findall(line)]
        assert any(list(map(float, NUMBER.findall(ours))) == pytest.approx(values, abs=0.011) for ours in alike), line
    assert len(blocks) == 2
