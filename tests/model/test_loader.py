"""Malformed weights end in a CheckpointError of one line that names file or tensor, before any is read."""

import json
import pickle
import re
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import model.loader
from model.checkpoint.config_file import load_config
from model.checkpoint.errors import CheckpointError
from model.checkpoint.headers import StoredTensor, read_headers
from model.checkpoint.manifest import verify_manifest
from model.loader import load_model, read_tensor
from model.mixtral import Mixtral
from model.ops.reference.ops import ReferenceOps
from tests.support.checkpoints import Shape, edit_config, random_model, save_in_layout
from tests.support.paged import CPU, teacher_forced
from tests.support.paths import DEMO

FILE = "model.safetensors"
Q_PROJ, HEAD = "model.layers.1.self_attn.q_proj.weight", "lm_head.weight"
W1 = "model.layers.0.block_sparse_moe.experts.3.w1.weight"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_in_layout(random_model(Shape(num_experts=4)), tmp_path)


def _load(path: Path) -> Mixtral:
    config, _ = load_config(path)
    return load_model(path, config, torch.float32, CPU, ReferenceOps(), lambda loaded, total: None)


def _edit(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(path / FILE)
    change(tensors)
    save_file(tensors, path / FILE)


def _shard(path: Path) -> dict[str, dict[str, Tensor]]:
    """Splits the single file in two with an index; returns the shards' tensors."""
    tensors = load_file(path / FILE)
    (path / FILE).unlink()
    names = sorted(tensors)
    halves = {"a.safetensors": names[: len(names) // 2], "b.safetensors": names[len(names) // 2 :]}
    shards = {file: {name: tensors[name] for name in half} for file, half in halves.items()}
    for file, shard in shards.items():
        save_file(shard, path / file)
    _write_index(path, {name: file for file, half in halves.items() for name in half})
    return shards


def _write_index(path: Path, weight_map: object) -> None:
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _assert_refused(path: Path, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused with this message, and no tensor was read."""

    def read_nothing(*arguments: object) -> Tensor:
        raise AssertionError("a weight was read before all were checked")

    monkeypatch.setattr(model.loader, "read_tensor", read_nothing)
    with pytest.raises(CheckpointError) as caught:
        _load(path)
    message = str(caught.value)
    assert re.search(pattern, message), message
    assert "\n" not in message and len(message) < 600


CHANGES: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "missing": (lambda t: t.pop(W1), f"tensor {W1} is missing$"),
    "several missing": (lambda t: (t.pop(W1), t.pop(HEAD)), r"is missing \(and 1 more\)"),
    "unexpected": (lambda t: t.update({"model.layers.2.x": torch.zeros(2)}), r"model\.layers\.2\.x'? does not belong"),
    "bias": (lambda t: t.update({Q_PROJ[:-6] + "bias": torch.zeros(32)}), "q_proj.bias'? does not belong"),
    "transposed": (lambda t: t.update({W1: t[W1].T.contiguous()}), rf"{W1} has shape \[32, 48\].*requires \[48, 32\]"),
    "short": (lambda t: t.update({HEAD: t[HEAD][:-1]}), rf"{HEAD} has shape \[100, 32\].*\[101, 32\]"),
    "flat": (lambda t: t.update({Q_PROJ: t[Q_PROJ].flatten()}), rf"{Q_PROJ} has shape \[1024\].*\[32, 32\]"),
    "integers": (lambda t: t.update({Q_PROJ: t[Q_PROJ].to(torch.int8)}), f"{Q_PROJ} has dtype I8"),
    "doubles": (lambda t: t.update({Q_PROJ: t[Q_PROJ].double()}), f"{Q_PROJ} has dtype F64"),
    "fp8": (lambda t: t.update({Q_PROJ: t[Q_PROJ].to(torch.float8_e4m3fn)}), f"{Q_PROJ} has dtype F8_E4M3"),
    "ugly name": (lambda t: t.update({"a\nb" * 99: torch.zeros(1)}), "does not belong"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_tensors_that_do_not_fit_the_config_are_refused(
    name: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, pattern = CHANGES[name]
    _edit(checkpoint, change)
    _assert_refused(checkpoint, pattern, monkeypatch)


def _with_header(header: bytes, rest: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + rest


CONTENTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
    "HTML": (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
    "pickle": (pickle.dumps({"model.norm.weight": [1.0] * 100}), "pickled"),
    "zipped torch file": (b"PK\x03\x04" + b"\0" * 100, "pickled"),
    "random": (bytes(range(1, 200)), "damaged or not a safetensors"),
    "four bytes": (b"\x01\x00\x00\x00", "damaged or not a safetensors"),
    "header beyond the end": ((1000).to_bytes(8, "little") + b"{}", "damaged or not a safetensors"),
    "header is no JSON": (_with_header(b"{hello"), "damaged or not a safetensors"),
    "unknown dtype": (
        _with_header(b'{"a":{"dtype":"X9","shape":[1],"data_offsets":[0,4]}}', b"\0" * 4),
        "damaged or not a safetensors",
    ),
    "offsets that overlap": (
        _with_header(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}',
            b"\0" * 6,
        ),
        "damaged or not a safetensors",
    ),
    "shape unlike its bytes": (
        _with_header(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', b"\0" * 4),
        "damaged or not a safetensors",
    ),
    "shape that overflows": (
        _with_header(b'{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,4]}}', b"\0" * 4),
        "damaged or not a safetensors",
    ),
    "no tensors": (_with_header(b"{}"), "is missing"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_what_is_no_safetensors_file_is_refused(name: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, pattern = CONTENTS[name]
    (checkpoint / FILE).write_bytes(content)
    _assert_refused(checkpoint, pattern, monkeypatch)


@pytest.mark.parametrize("num_bytes", [-1, 1])
def test_a_file_too_short_or_long_by_one_byte_is_refused(
    num_bytes: int, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (checkpoint / FILE).read_bytes()
    (checkpoint / FILE).write_bytes(content[:-1] if num_bytes < 0 else content + b"\0")
    _assert_refused(checkpoint, f"{FILE} is damaged", monkeypatch)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickled_weights_are_refused_by_name(name: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkpoint / FILE).rename(checkpoint / name)
    _assert_refused(checkpoint, f"{name}' holds pickled weights", monkeypatch)


def test_no_weights_at_all_are_refused(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkpoint / FILE).unlink()
    _assert_refused(checkpoint, f"{FILE} is missing", monkeypatch)


def test_shards_without_an_index_are_refused(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkpoint / FILE).rename(checkpoint / "model-00001-of-00002.safetensors")
    _assert_refused(checkpoint, "model-00001-of-00002.safetensors.*no model.safetensors.index.json", monkeypatch)


def test_a_missing_shard_is_named(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _shard(checkpoint)
    (checkpoint / "b.safetensors").unlink()
    _assert_refused(checkpoint, "b.safetensors is missing, though", monkeypatch)


def test_a_tensor_in_two_shards_is_refused(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = _shard(checkpoint)
    name = next(iter(shards["a.safetensors"]))
    save_file(shards["b.safetensors"] | {name: shards["a.safetensors"][name]}, checkpoint / "b.safetensors")
    _assert_refused(checkpoint, f"{name} is in .*a.safetensors and again in .*b.safetensors", monkeypatch)


def test_swapped_shards_are_refused(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = _shard(checkpoint)
    save_file(shards["a.safetensors"], checkpoint / "b.safetensors")
    save_file(shards["b.safetensors"], checkpoint / "a.safetensors")
    _assert_refused(checkpoint, "lists tensor .* which does not contain it", monkeypatch)


@pytest.mark.parametrize(
    "weight_map", [None, {}, [], {"a": 7}, {"a": "../x.safetensors"}, {"a": "/etc/passwd"}, {"a": "b.bin"}]
)
def test_an_index_that_leads_elsewhere_is_refused(
    weight_map: object, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_index(checkpoint, weight_map)
    _assert_refused(checkpoint, "index.json.*(no weight_map|not the name)", monkeypatch)


def test_a_file_that_shrinks_after_the_check_is_an_error(checkpoint: Path) -> None:
    tensor = read_headers(checkpoint)["model.norm.weight"]
    with (checkpoint / FILE).open("r+b") as file:
        file.truncate(tensor.start + tensor.num_bytes - 1)
    with pytest.raises(CheckpointError, match=r"ends within tensor model\.norm\.weight"):
        read_tensor(tensor)


def test_shards_give_the_network_of_the_single_file(checkpoint: Path) -> None:
    single = teacher_forced(_load(checkpoint), [[1, 2, 3]], [3])[0]
    _shard(checkpoint)
    assert torch.equal(teacher_forced(_load(checkpoint), [[1, 2, 3]], [3])[0], single)


def test_a_stored_head_goes_before_tying(checkpoint: Path) -> None:
    untied = teacher_forced(_load(checkpoint), [[1, 2, 3]], [3])[0]
    edit_config(checkpoint, tie_word_embeddings=True)
    assert torch.equal(teacher_forced(_load(checkpoint), [[1, 2, 3]], [3])[0], untied)
    _edit(checkpoint, lambda tensors: tensors.pop(HEAD))
    tied = _load(checkpoint)
    assert tied.weights.head is tied.weights.embedding


def test_stored_rotary_angles_of_old_conversions_are_ignored(checkpoint: Path) -> None:
    _edit(checkpoint, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}))
    assert _load(checkpoint).config.num_layers == 2


@pytest.mark.parametrize("fused", [False, True])
def test_progress_grows_to_all_bytes(fused: bool, tmp_path: Path) -> None:
    path = save_in_layout(random_model(Shape(num_experts=4)), tmp_path, fused=fused)
    seen: list[tuple[int, int]] = []
    load_model(
        path,
        load_config(path)[0],
        torch.bfloat16,
        CPU,
        ReferenceOps(),
        lambda loaded, total: seen.append((loaded, total)),
    )
    assert [loaded for loaded, _ in seen] == sorted({loaded for loaded, _ in seen})
    assert seen[-1] == (seen[0][1], sum(tensor.num_bytes for tensor in read_headers(path).values()))


def test_an_expert_is_dropped_before_the_next_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that at the peak one copy of the weights and one expert are held, not a layer's experts twice."""
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most_alive = 0

    def watched(tensor: StoredTensor, first: int, count: int) -> Tensor:
        nonlocal most_alive
        weight = read_tensor(tensor, first, count)
        if re.search(r"experts\.\d+\.w[13]", tensor.name):
            alive.add(weight)
            most_alive = max(most_alive, len(alive))
        return weight

    monkeypatch.setattr(model.loader, "read_tensor", watched)
    _load(save_in_layout(random_model(Shape(num_experts=4)), tmp_path))
    assert most_alive == 2  # w1 and w3 of one expert


def test_the_bundled_models_files_have_their_sums() -> None:
    verify_manifest(DEMO, lambda done, total: None)
