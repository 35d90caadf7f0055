"""`smoe models`: what other programs downloaded, and what of it fits, from headers alone."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from server.cli.main import app
from server.model_files.location import ModelNotFoundError, locate_model
from server.model_files.stores import ModelStores
from tests.support.checkpoints.gguf import GgufShape, all_of, write_fields, write_gguf
from tests.support.checkpoints.header_only import MIXTRAL_8X7B, save_headers


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "OLLAMA_MODELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def _models(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["models", *arguments])


def test_models_of_all_stores_are_listed_with_their_fit(home: Path) -> None:
    hub = home / ".cache" / "huggingface" / "hub" / "models--org--big"
    save_headers(hub / "snapshots" / "abc", MIXTRAL_8X7B)
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("abc")
    folder = home / ".lmstudio" / "models" / "org" / "small-GGUF"
    folder.mkdir(parents=True)
    write_gguf(folder / "small.Q8_0.gguf", GgufShape(), all_of("Q8_0"))
    write_fields(folder / "other.Q4_0.gguf", {"general.name": "x"})
    (folder / "broken.Q4_0.gguf").write_bytes(b"GGUF")
    result = _models("--memory", "64GiB", "--json")
    assert result.exit_code == 0
    listed = {model["name"]: model for model in json.loads(result.stdout)["models"]}
    big, small = listed["org/big"], listed["org/small-GGUF:Q8_0"]
    assert (big["store"], big["fits_as"], big["verdict"]) == ("Hugging Face", "int8", "fits with --quantization int8")
    assert big["stored_bytes"] == 93_405_585_408
    assert (small["store"], small["fits_as"], small["verdict"]) == ("LM Studio", "own blocks", "fits in own blocks")
    assert small["stored_bytes"] < (folder / "small.Q8_0.gguf").stat().st_size
    table = _models("--memory", "1GiB").stdout.splitlines()
    assert [line.split()[0] for line in table[:-1]] == [
        "org/big",
        "org/small-GGUF:broken.Q4_0",
        "org/small-GGUF:other.Q4_0",
        "org/small-GGUF:Q8_0",
    ]
    assert table[0].endswith("does not fit") and "fits in own blocks" in table[3]
    assert all("not served: " in line and str(home) not in line for line in table[1:3])


def test_a_model_with_an_adapter_of_ollama_is_not_served_whatever_its_weights_are(home: Path) -> None:
    ollama = home / ".ollama" / "models"
    (ollama / "blobs").mkdir(parents=True)
    write_gguf(ollama / "blobs" / ("sha256-" + "a" * 64), GgufShape(), all_of("Q8_0"))
    weights = {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:" + "a" * 64}
    adapter = {"mediaType": "application/vnd.ollama.image.adapter", "digest": "sha256:" + "b" * 64}
    tags = ollama / "manifests" / "registry.ollama.ai" / "library" / "small"
    tags.mkdir(parents=True)
    (tags / "latest").write_text(json.dumps({"layers": [weights]}))
    (tags / "tuned").write_text(json.dumps({"layers": [weights, adapter]}))
    listed = {model["name"]: model for model in json.loads(_models("--memory", "1GiB", "--json").stdout)["models"]}
    assert listed["small:latest"]["verdict"] == "fits in own blocks"
    tuned = listed["small:tuned"]
    assert tuned["verdict"] == "not served: has an adapter in Ollama's format, which is not read"
    assert (tuned["stored_bytes"], tuned["fits_as"]) == (None, None)
    with pytest.raises(ModelNotFoundError, match=tuned["verdict"].removeprefix("not served: ")):
        locate_model("small:tuned", ModelStores(home, ollama=ollama))


@pytest.mark.parametrize(
    ("device", "verdicts"),
    [
        ("cpu", {"org/big": "fits with --quantization int4", "org/small:Q8_0": "fits in own blocks"}),
        ("cuda", {"org/big": "does not fit", "org/small:Q8_0": "fits in bfloat16"}),
    ],
)
def test_formats_are_those_of_the_device(device: str, verdicts: dict[str, str], home: Path) -> None:
    folder = home / ".lmstudio" / "models" / "org"
    save_headers(folder / "big", MIXTRAL_8X7B)
    (folder / "small").mkdir()
    write_gguf(folder / "small" / "small.Q8_0.gguf", GgufShape(), all_of("Q8_0"))
    listed = json.loads(_models("--memory", "30GiB", "--device", device, "--json").stdout)["models"]
    assert {model["name"]: model["verdict"] for model in listed} == verdicts


def test_a_machine_without_models_says_so(home: Path) -> None:
    result = _models()
    assert result.exit_code == 0 and result.stdout.startswith("no models in the caches")


def test_a_wrong_size_ends_with_one_line(home: Path) -> None:
    result = _models("--memory", "lots")
    assert result.exit_code == 2 and result.stderr.startswith("smoe: --memory") and result.stderr.count("\n") == 1
