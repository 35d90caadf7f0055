"""Loading: headers are checked first, then each weight is read once, and dropped once it is packed."""

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
from model.checkpoint.headers import read_headers
from model.checkpoint.stored_tensor import StoredTensor
from model.loader import LoadOptions, load_model
from model.mixtral import Mixtral
from model.ops.reference.ops import ReferenceOps
from model.stored_weights import read_weight
from tests.support.checkpoints.mixtral import (
    Shape,
    edit_config,
    edit_tensors,
    random_model,
    save_in_layout,
    write_index,
)
from tests.support.kernels.paged import CPU, teacher_forced

FILE = "model.safetensors"
HEAD = "lm_head.weight"
W1 = "model.layers.0.block_sparse_moe.experts.3.w1.weight"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_in_layout(random_model(Shape(num_experts=4)), tmp_path)


def _load(path: Path) -> Mixtral:
    config, _ = load_config(path)
    return load_model(path, config, ReferenceOps(), LoadOptions(torch.float32, CPU))


def _shard(path: Path) -> dict[str, dict[str, Tensor]]:
    """Split the single file in two with an index; return the shards' tensors."""
    tensors = load_file(path / FILE)
    (path / FILE).unlink()
    names = sorted(tensors)
    halves = {"a.safetensors": names[: len(names) // 2], "b.safetensors": names[len(names) // 2 :]}
    shards = {file: {name: tensors[name] for name in half} for file, half in halves.items()}
    for file, shard in shards.items():
        save_file(shard, path / file)
    write_index(path, {name: file for file, half in halves.items() for name in half})
    return shards


def _cut(path: Path, shards: dict[str, dict[str, Tensor]]) -> None:
    """Remove the last byte of the last shard."""
    file = path / max(shards)
    file.write_bytes(file.read_bytes()[:-1])


DEFECTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a tensor is missing": (lambda path: edit_tensors(path, lambda t: t.pop(W1)), f"tensor {W1} is missing"),
    "a tensor has integers": (
        lambda path: edit_tensors(path, lambda t: t.update({HEAD: t[HEAD].to(torch.int8)})),
        "dtype I8",
    ),
    "the last shard is cut": (lambda path: _cut(path, _shard(path)), "b.safetensors is damaged"),
    "a file without tensors": (lambda path: save_file({}, path / FILE), "is missing"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_no_weight_is_read_before_all_headers_are_checked(
    name: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_nothing(*arguments: object) -> Tensor:
        raise AssertionError("a weight was read before all were checked")

    damage, pattern = DEFECTS[name]
    damage(checkpoint)
    monkeypatch.setattr(model.loader, "read_weight", read_nothing)
    with pytest.raises(CheckpointError, match=pattern):
        _load(checkpoint)


def test_a_file_that_shrinks_after_the_check_is_an_error(checkpoint: Path) -> None:
    tensor = read_headers(checkpoint)["model.norm.weight"]
    with (checkpoint / FILE).open("r+b") as file:
        file.truncate(tensor.start + tensor.num_bytes - 1)
    with pytest.raises(CheckpointError, match=r"ends within tensor model\.norm\.weight"):
        read_weight(tensor, torch.float32)


def test_shards_give_the_network_of_the_single_file(checkpoint: Path) -> None:
    single = teacher_forced(_load(checkpoint), [[1, 2, 3]], [3])[0]
    _shard(checkpoint)
    assert torch.equal(teacher_forced(_load(checkpoint), [[1, 2, 3]], [3])[0], single)


def test_a_stored_head_goes_before_tying(checkpoint: Path) -> None:
    untied = teacher_forced(_load(checkpoint), [[1, 2, 3]], [3])[0]
    edit_config(checkpoint, tie_word_embeddings=True)
    assert torch.equal(teacher_forced(_load(checkpoint), [[1, 2, 3]], [3])[0], untied)
    edit_tensors(checkpoint, lambda tensors: tensors.pop(HEAD))
    tied = _load(checkpoint)
    assert tied.weights.head is tied.weights.embedding


@pytest.mark.parametrize("fused", [False, True])
def test_progress_grows_to_all_bytes(fused: bool, tmp_path: Path) -> None:
    path = save_in_layout(random_model(Shape(num_experts=4)), tmp_path, fused=fused)
    seen: list[tuple[int, int]] = []
    options = LoadOptions(torch.bfloat16, CPU, lambda loaded, total: seen.append((loaded, total)))
    load_model(path, load_config(path)[0], ReferenceOps(), options)
    assert [loaded for loaded, _ in seen] == sorted({loaded for loaded, _ in seen})
    assert seen[-1] == (seen[0][1], sum(tensor.num_bytes for tensor in read_headers(path).values()))


def test_an_expert_is_dropped_before_the_next_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak is then one copy of the weights and one expert, not all experts of a layer twice."""
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most_alive = 0

    def watched(tensor: StoredTensor, dtype: torch.dtype, first: int, count: int, num_threads: int) -> Tensor:
        nonlocal most_alive
        weight = read_weight(tensor, dtype, first, count, num_threads)
        if re.search(r"experts\.\d+\.w[13]", tensor.name):
            alive.add(weight)
            most_alive = max(most_alive, len(alive))
        return weight

    monkeypatch.setattr(model.loader, "read_weight", watched)
    _load(save_in_layout(random_model(Shape(num_experts=4)), tmp_path))
    assert most_alive == 2  # w1 and w3 of one expert
