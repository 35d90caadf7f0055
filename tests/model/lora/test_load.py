"""Adapters that PEFT saves are loaded; every other input gets one line that names the file and the reason."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.checkpoint.adapter.config import read_adapter_config
from model.checkpoint.adapter.tensors import read_adapter_tensors
from model.checkpoint.config_file import load_config
from model.checkpoint.errors import CheckpointError
from model.config import ModelConfig
from model.lora import load
from model.lora.load import load_adapter
from model.ops.huge_pages import empty
from tests.support.checkpoints.adapters import PREFIX, random_tensors, save_adapter
from tests.support.checkpoints.mixtral import Shape, save_random_checkpoint

Tensors = dict[str, Tensor]
Q = f"{PREFIX}model.layers.1.self_attn.q_proj.lora_"
W2 = f"{PREFIX}model.layers.0.block_sparse_moe.experts.3.w2.lora_"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    path = tmp_path_factory.mktemp("checkpoint")
    save_random_checkpoint(Shape(num_experts=4), path)
    return load_config(path)[0]


@pytest.mark.parametrize(
    ("options", "scale"), [({}, 8 / 4), ({"use_rslora": True}, 8 / 2), ({"use_rslora": False, "lora_dropout": 0.1}, 2)]
)
def test_terms_have_the_files_numbers_and_the_scale_of_the_config(
    config: ModelConfig, tmp_path: Path, options: dict[str, Any], scale: float
) -> None:
    tensors = random_tensors(config)
    adapter = load_adapter(save_adapter(tmp_path, tensors, lora_alpha=8, **options), config)
    q, w2 = adapter.layers[1][0], adapter.layers[0][4 + 3 * 3 + 2]
    for term, name in ((q, Q), (w2, W2)):
        assert term is not None and term.scale == pytest.approx(scale)
        for matrix, part in zip(term.matrices, "AB", strict=True):
            assert torch.equal(matrix, tensors[f"{name}{part}.weight"])


def test_bfloat16_stays_and_other_types_become_float32(config: ModelConfig, tmp_path: Path) -> None:
    for dtype, kept in ((torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)):
        path = save_adapter(tmp_path / str(dtype), random_tensors(config, dtype=dtype))
        term = load_adapter(path, config).layers[0][0]
        assert term is not None and term.a.dtype == term.b.dtype == kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_all_matrices_lie_side_by_side_in_the_order_of_the_layers(
    config: ModelConfig, tmp_path: Path, dtype: torch.dtype
) -> None:
    """Each begins at a line of the caches, in memory of the caller's."""
    pieces: list[Tensor] = []

    def allocate(num_elements: int, dtype: torch.dtype) -> Tensor:
        pieces.append(empty(num_elements, dtype))
        return pieces[-1]

    path = save_adapter(tmp_path, random_tensors(config, rank=5, dtype=dtype))
    adapter = load_adapter(path, config, allocate=allocate)
    [piece] = pieces
    matrices = [matrix for layer in adapter.layers for term in layer if term for matrix in (term.a, term.b)]
    ends = [matrix.data_ptr() + matrix.nbytes for matrix in matrices]
    assert [matrix.data_ptr() for matrix in matrices] == [piece.data_ptr(), *ends[:-1]]
    assert ends[-1] == piece.data_ptr() + len(piece)
    assert all(matrix.data_ptr() % 64 == 0 for matrix in matrices)


def test_the_digest_is_that_of_the_files_contents(config: ModelConfig, tmp_path: Path) -> None:
    tensors = random_tensors(config)
    one, same = (load_adapter(save_adapter(tmp_path / name, tensors), config).digest for name in "ab")
    scaled = load_adapter(save_adapter(tmp_path / "c", tensors, lora_alpha=5), config).digest
    tensors[f"{Q}A.weight"][0, 0] += 1
    other = load_adapter(save_adapter(tmp_path / "d", tensors), config).digest
    assert one == same
    assert len({one, scaled, other}) == 3


def test_ranks_and_scales_are_those_of_the_first_pattern_that_matches_a_modules_name(
    config: ModelConfig, tmp_path: Path
) -> None:
    tensors = random_tensors(config, rank=4)
    of_rank_6 = random_tensors(config, rank=6)
    tensors |= {name: of_rank_6[name] for name in tensors if ".w2." in name or ".1.self_attn.q_proj." in name}
    path = save_adapter(
        tmp_path,
        tensors,
        r=4,
        lora_alpha=8,
        rank_pattern={"w2": 6, "layers.1.self_attn.q_proj": 6, "proj": 9},  # proj is no end of a name from a dot on
        alpha_pattern={r"layers\.0\..*\.experts\.[0-2]\.w2": 3, "w2": 12, "q_pro": 1},
    )
    adapter = load_adapter(path, config)
    of_layers = [{i: (term.rank, term.scale) for i, term in enumerate(layer) if term} for layer in adapter.layers]
    w2 = {4 + 3 * expert + 2: expert for expert in range(4)}
    assert of_layers[0] == {i: (6, 0.5 if w2[i] < 3 else 2.0) if i in w2 else (4, 2.0) for i in range(16)}
    assert of_layers[1] == {i: (6, 2.0) if i in w2 else (4, 2.0) for i in range(16)} | {0: (6, 8 / 6)}
    stored = read_adapter_tensors(path, read_adapter_config(path), config)
    assert sum(term.memory_bytes for term in stored) == adapter.num_bytes


TOO_LONG = "rank_pattern and alpha_pattern take too long to match; supported are, of both together, 3,200 plain"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; only LoRA adapters can be served"),
        ({"peft_type": ...}, "peft_type is None; only LoRA adapters can be served"),
        ({"use_dora": True}, "use_dora is True: adapters with DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is ['lm_head']: adapters with whole modules"),
        ({"bias": "all"}, "bias is 'all': adapters with biases are not supported"),
        ({"lora_bias": True}, "lora_bias is True: adapters with biases are not supported"),
        ({"rank_pattern": {"q_proj": 8}}, "has shape [4, 32], but rank 8 and this model require [8, 32]"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern.q_proj is 0, not an integer from 1 to 512"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern is ['q_proj'], not an object"),
        ({"rank_pattern": {"q_proj(": 4}}, "rank_pattern has the pattern 'q_proj(', which is not a regular expression"),
        ({"alpha_pattern": {"q_proj": -1}}, "alpha_pattern.q_proj is -1, not a number above 0"),
        ({"alpha_pattern": {"(a+)+b": 1}}, "alpha_pattern has the pattern '(a+)+b'; supported are"),
        ({"alpha_pattern": {"a?" * 30: 1}}, "2 repetitions and 4 groups, none of which is repeated"),
        ({"alpha_pattern": {"(a|a)" * 5: 1}}, "2 repetitions and 4 groups, none of which is repeated"),
        ({"alpha_pattern": {"q_proj\n": 1}}, "alpha_pattern has the pattern 'q_proj\\n'; supported are"),
        ({"alpha_pattern": {"a" * 257: 1}}, "supported are 256 characters"),
        ({"alpha_pattern": {".*.*.*Z": 1}}, "2 repetitions and 4 groups, none of which is repeated"),
        ({"alpha_pattern": {f".*.*Z{i}": 1 for i in range(10)}}, TOO_LONG),
        ({"alpha_pattern": {f".*Z{i}": 1 for i in range(201)}}, TOO_LONG),
        ({"alpha_pattern": {".*" + r"\B" * 124 + "Z": 1}}, "none of which is repeated, without assertions"),
        ({"alpha_pattern": {".*(?<!a)Z": 1}}, "none of which is repeated, without assertions"),
        ({"alpha_pattern": {f"(.*|.)(.|.)(.|.)(.|.)Z{i}": 1 for i in range(40)}}, TOO_LONG),
        ({"alpha_pattern": {"(|.|..|...)" * 4 + ".*.*": 1}}, TOO_LONG),
        ({name: {f"m{i}": 1 for i in range(1601)} for name in ("rank_pattern", "alpha_pattern")}, TOO_LONG),
        ({"target_parameters": ["experts.down_proj"]}, "target_parameters is"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True"),
        (
            {"init_lora_weights": "pissa_niter_16"},
            "init_lora_weights is 'pissa_niter_16', which changes the base model",
        ),
        ({"r": 0}, "r is 0, not an integer from 1 to 512"),
        ({"r": 513}, "r is 513, not an integer from 1 to 512"),
        ({"r": "4"}, "r is '4', not an integer from 1 to 512"),
        ({"r": ...}, "r is missing"),
        ({"lora_alpha": ...}, "lora_alpha is missing"),
        ({"lora_alpha": -1}, "lora_alpha is -1, not a number above 0"),
        ({"use_rslora": "yes"}, "use_rslora is 'yes', not true or false"),
        ({"r": 8}, "has shape [4, 32], but rank 8 and this model require [8, 32]; the adapter belongs to 'org/base'"),
    ],
    ids=lambda part: str(part)[:80],
)
def test_a_config_that_cannot_be_served_is_refused(
    config: ModelConfig, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    _refused(save_adapter(tmp_path, random_tensors(config), **change), config, reason)


def _set(name: str, tensor: Tensor) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name: tensor})


def _spoil(value: float) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[f"{W2}B.weight"][3, 1] = value

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_set(f"{PREFIX}lm_head.lora_A.weight", torch.ones(4, 32)), "lm_head.lora_A.weight' is no LoRA matrix of"),
        (
            _set(f"{PREFIX}model.layers.0.block_sparse_moe.gate.lora_A.weight", torch.ones(4, 32)),
            "gate.lora_A.weight' is no LoRA matrix of",
        ),
        (_set(f"{PREFIX}model.layers.0.mlp.up_proj.lora_A.weight", torch.ones(4, 32)), "no others are supported"),
        (_set(f"{Q}magnitude_vector", torch.ones(4)), "no others are supported"),
        (_set("model.norm.weight", torch.ones(32)), "'model.norm.weight' is no LoRA matrix of"),
        (
            _set(f"{PREFIX}model.layers.2.self_attn.q_proj.lora_A.weight", torch.ones(4, 32)),
            "this model has 2 layers with 4 experts; the adapter belongs to 'org/base'",
        ),
        (
            _set(f"{PREFIX}model.layers.0.block_sparse_moe.experts.4.w1.lora_A.weight", torch.ones(4, 32)),
            "this model has 2 layers with 4 experts",
        ),
        (_set(f"{Q}A.weight", torch.ones(4, 40)), "has shape [4, 40], but rank 4 and this model require [4, 32]"),
        (_set(f"{Q}B.weight", torch.ones(64, 4)), "has shape [64, 4], but rank 4 and this model require [32, 4]"),
        (_set(f"{Q}A.weight", torch.ones(4)), "has shape [4], but"),
        (_set(f"{Q}A.weight", torch.ones(4, 32, dtype=torch.int8)), "has dtype I8; supported are F32, BF16, F16"),
        (_set(f"{Q}A.default.weight", torch.ones(4, 32)), "occurs twice"),
        (lambda tensors: tensors.pop(f"{Q}A.weight"), f"tensor {Q}B.weight has no lora_A beside it"),
        (lambda tensors: tensors.pop(f"{Q}B.weight"), f"tensor {Q}A.weight has no lora_B beside it"),
        (_spoil(float("nan")), f"tensor {W2}B.weight has NaN or infinite values"),
        (_spoil(float("-inf")), f"tensor {W2}B.weight has NaN or infinite values"),
        (lambda tensors: tensors.clear(), "adapter_model.safetensors has no tensors"),
    ],
)  # fmt: skip
def test_tensors_that_cannot_be_served_are_refused(
    config: ModelConfig, tmp_path: Path, change: Callable[[Tensors], None], reason: str
) -> None:
    tensors = random_tensors(config)
    change(tensors)
    _refused(save_adapter(tmp_path, tensors, r=4), config, reason)


def test_files_that_are_missing_or_damaged_are_refused(config: ModelConfig, tmp_path: Path) -> None:
    path = save_adapter(tmp_path / "adapter", random_tensors(config))
    _refused(tmp_path / "nowhere", config, "nowhere: no such directory")
    (tmp_path / "empty").mkdir()
    _refused(tmp_path / "empty", config, "adapter_config.json is missing")
    (tmp_path / "file").touch()
    _refused(tmp_path / "file", config, "file is a file; give the directory that adapter_config.json is in")
    _refused(tmp_path / "file" / "below", config, "below: cannot be read: Not a directory")
    file = path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    _refused(path, config, "is damaged or not a safetensors file")
    file.rename(path / "adapter_model.bin")
    _refused(path, config, "adapter_model.safetensors is missing; 'adapter_model.bin' holds pickled weights")
    (path / "adapter_config.json").write_text(json.dumps([1]))
    _refused(path, config, "not a JSON object")


def test_a_file_that_shrinks_or_vanishes_after_its_header_was_read_is_refused(
    config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_adapter(tmp_path, random_tensors(config))
    file = path / "adapter_model.safetensors"
    read_tensors = load.read_adapter_tensors
    for change, reason in ((lambda: os.truncate(file, 5000), " ends within tensor "), (file.unlink, "cannot be read")):

        def read_headers(*arguments: Any, change: Callable[[], object] = change) -> Any:
            stored = read_tensors(*arguments)
            change()
            return stored

        with monkeypatch.context() as patch:
            patch.setattr(load, "read_adapter_tensors", read_headers)
            patch.setattr(load, "files_digest", lambda tensors: "")
            patch.setattr(load, "_digest", lambda files: "")
            _refused(path, config, reason)
        save_adapter(tmp_path, random_tensors(config))


def _refused(path: Path, config: ModelConfig, reason: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_adapter(path, config)
    line = str(caught.value)
    assert reason in line and "\n" not in line and str(path) in line, line
