"""`smoe experts` on the bundled model, against the engine in this process."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from server.cli.experts import measurement
from server.cli.experts.report import shares
from server.cli.main import app
from smoe import LocalEngine, SamplingParams
from tests.support.checkpoints.mixtral import Shape, save_random_checkpoint
from tests.support.paths import DEMO

TEXTS = {
    "austen": "She was then obliged to assure her mother that it was not in her power to come. " * 3,
    "python": "def __init__(self, name):\n    self.name = name\n    self.value = None\n" * 3,
}


@pytest.fixture(scope="module")
def engine() -> LocalEngine:
    torch.set_num_threads(1)
    return LocalEngine(DEMO, threads=1)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """--text flags."""
    for name, text in TEXTS.items():
        (tmp_path / f"{name}.txt").write_text(text)
    return [flag for name in TEXTS for flag in ("--text", str(tmp_path / f"{name}.txt"))]


def _command(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["experts", *arguments])


def _ids(engine: LocalEngine, name: str) -> list[int]:
    return engine.tokenizer.encode(TEXTS[name], add_special_tokens=False)


def test_counts_are_those_of_each_text_alone(engine: LocalEngine, files: list[str], tmp_path: Path) -> None:
    picture = tmp_path / "shares.png"
    result = _command(*files, "--json", "--png", str(picture))
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)["texts"]
    for name in TEXTS:
        ids = _ids(engine, name)
        [alone] = engine.generate(ids, SamplingParams(max_tokens=1, expert_usage=True))
        assert answer[name]["tokens"] == alone.expert_prompt_tokens
        assert {sum(layer) for layer in answer[name]["tokens"]} == {2 * len(ids)}
        assert answer[name]["share"] == [shares(layer) for layer in alone.expert_prompt_tokens]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_sweep_has_perplexity_and_speed_for_every_number_of_experts(
    engine: LocalEngine, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurement, "ROUNDS", 1)
    monkeypatch.setattr(measurement, "WINDOW_TOKENS", 20)
    result = _command(*files, "--dial", "--json", "--tokens", "50", "--png", str(tmp_path / "dial.png"))
    assert result.exit_code == 0, result.output
    points: list[dict[str, Any]] = json.loads(result.stdout)["dial"]
    assert [point["experts_per_token"] for point in points] == list(range(1, 9))
    for point in points[::3]:
        for name in TEXTS:
            ids = _ids(engine, name)[:50]
            params = SamplingParams(max_tokens=0, prompt_logprobs=True, experts_per_token=point["experts_per_token"])
            alone = engine.generate([ids[:20], ids[20:40], ids[40:]], params)
            scores = [token.logprob for completion in alone for token in completion.prompt_logprobs]
            assert point["perplexity"][name] == pytest.approx(math.exp(-sum(scores) / len(scores)), rel=1e-4)
        assert point["prefill_tokens_per_s"] > 0 and point["decode_tokens_per_s"] > 0
    assert (tmp_path / "dial.png").read_bytes().startswith(b"\x89PNG")


def test_invalid_arguments_are_reported_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, empty, binary = tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "c.txt"
    good.write_text("It is a truth")
    empty.write_text("")
    binary.write_bytes(b"\xff\xfe")
    dense = tmp_path / "dense"
    save_random_checkpoint(Shape(num_experts=0, vocab_size=3072), dense)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (dense / name).write_bytes((DEMO / name).read_bytes())
    monkeypatch.setenv("SMOE_THREADS", "1")
    cases = {
        "at least one --text": [],
        "No such file": ["--text", str(tmp_path / "none.txt")],
        "the file has no text": ["--text", str(empty)],
        "not UTF-8": ["--text", str(binary)],
        "the same name": ["--text", str(good), "--text", str(good)],
        "no such file or directory": ["/nonexistent", "--text", str(good)],
        "has no experts": [str(dense), "--text", str(good)],
        "--png": ["--text", str(good), "--png", str(tmp_path / "no" / "folder.png")],
    }
    for message, arguments in cases.items():
        result = _command(*arguments)
        assert result.exit_code == 2, result.output
        [line] = result.stderr.splitlines()
        assert message in line
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'smoe[bench]'" in _command("--text", str(good), "--png", "a.png").stderr
