"""Lossless weights: bfloat16 in 12 bits gives the bits of bfloat16, on every instruction set.

The layout of a panel is checked by a decoder in numpy, written from model/native/gemm/coded_weights.h.
"""

import numpy as np
import pytest
import torch
from torch import Tensor

from model.checkpoint.errors import CheckpointError
from model.ops.interface import FfnWeights
from model.ops.native.packed_weights import DTYPES, PANEL, QUANTIZED_FORMATS, NativeMatrix
from model.ops.weights import TensorStream
from tests.support.kernels.native_cases import ISAS, native
from tests.support.routing_requests import uniform_request

BFLOAT16, CODED = DTYPES[torch.bfloat16], QUANTIZED_FORMATS["lossless"]
ROWS = [1, 2, 3, 5, 12, 13, 17, 32, 33, 40, 70, 300]
SHAPES = [(32, 4), (75, 37), (1, 1), (33, 130), (64, 1100), (96, 256)]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def _random(*shape: int) -> Tensor:
    return torch.randn(shape).mul(shape[-1] ** -0.5).bfloat16()


def _same_bits(one: Tensor, other: Tensor) -> bool:
    integer = torch.int16 if one.dtype == torch.bfloat16 else torch.int32
    return torch.equal(one.view(integer), other.view(integer))


def _with_rare_exponents(num_outputs: int, num_inputs: int) -> Tensor:
    """Return weights of which one in 400 is far from the others: zeros of either sign, and numbers of any bits."""
    weight = _random(num_outputs, num_inputs)
    any_bits = torch.randint(-(2**15), 2**15, weight.shape).to(torch.int16).view(torch.bfloat16)
    any_bits = torch.where(any_bits.abs() < 1e4, any_bits, -0.0)  # so that sums are finite
    return torch.where(torch.rand(weight.shape) < 1 / 400, any_bits, weight)


def _decoded(matrix: NativeMatrix, num_inputs: int) -> Tensor:
    """Decode the panels of a matrix: [outputs, D] bfloat16, with whatever stands behind the last output and input."""
    num_pairs, num_patches = -(-num_inputs // 4), -(-num_inputs // 64) * 16
    panels = matrix.panels.numpy().reshape(-1, matrix.stride)
    assert matrix.stride == 64 + 4 * num_patches + 192 * num_pairs
    outputs = [16 * (i % 16 // 8) + 4 * (i // 16) + i % 8 // 2 for i in range(64)]  # of a unit's bytes
    halves = [i % 2 for i in range(64)]
    decoded = np.zeros((len(panels), PANEL, 2 * num_pairs, 2), np.uint16)
    for panel, to in zip(panels, decoded, strict=True):
        pairs = panel[64 + 4 * num_patches :].reshape(num_pairs, 3, 64)
        for unit in range(2):
            codes = pairs[:, 0] >> 4 * unit & 15
            words = pairs[:, 1 + unit].astype(np.uint16) | panel[:16][codes].astype(np.uint16) << 8
            to[outputs, unit::2, halves] = words.T
        count, patches = panel[16:20].view("<u4")[0], panel[64 : 64 + 4 * num_patches].view("<u4")
        flat = to.transpose(1, 0, 2).reshape(-1)  # a copy, [units, PANEL, 2]
        places = patches[:count] >> 8
        assert (np.diff(places.astype(np.int64)) > 0).all() and (patches[count:] == 0).all()
        flat[places] = flat[places] & 0xFF | (patches[:count] & 0xFF).astype(np.uint16) << 8
        to[:] = flat.reshape(2 * num_pairs, PANEL, 2).transpose(1, 0, 2)
    weights = torch.from_numpy(decoded.astype(np.int16)).view(torch.bfloat16)
    return weights.reshape(len(panels) * PANEL, 4 * num_pairs)


@pytest.mark.parametrize(("num_outputs", "num_inputs"), SHAPES, ids=str)
@pytest.mark.parametrize("make", [_random, _with_rare_exponents])
def test_a_packed_matrix_decodes_to_its_bits(make: object, num_outputs: int, num_inputs: int) -> None:
    weight = make(num_outputs, num_inputs)  # type: ignore[operator]
    (matrix,) = native(ISAS[-1], 2, "lossless").pack_linear(weight).matrices
    decoded = _decoded(matrix, num_inputs).view(torch.int16)
    assert torch.equal(decoded[:num_outputs, :num_inputs], weight.view(torch.int16))
    assert not decoded[num_outputs:].any() and not decoded[:, num_inputs:].any(), "padding"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("make", [_random, _with_rare_exponents])
def test_products_have_the_bits_of_bfloat16(isa: str, make: object) -> None:
    for num_outputs, num_inputs in SHAPES:
        weight = make(num_outputs, num_inputs)  # type: ignore[operator]
        plain, coded = (native(ISAS[0], quantization=kind).pack_linear(weight) for kind in ("none", "lossless"))
        for count in ROWS:
            x = torch.randn(count, num_inputs).bfloat16()
            for rows in (x, x.float()):
                for threads in (1, 2):
                    ops = native(isa, threads)
                    assert _same_bits(ops.linear(rows, coded), ops.linear(rows, plain)), (count, threads, rows.dtype)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("dim", "hidden"), [(37, 71), (256, 96), (1100, 300)])
def test_experts_have_the_bits_of_bfloat16(isa: str, dim: int, hidden: int) -> None:
    shapes = ((hidden, dim), (hidden, dim), (dim, hidden))
    experts = [FfnWeights(*(_with_rare_exponents(*shape) for shape in shapes)) for _ in range(3)]
    gate = torch.randn(3, dim)
    plain, coded = (native(ISAS[0], 2, kind).pack_moe(gate, iter(experts)) for kind in ("none", "lossless"))
    for count in ROWS:
        x = torch.randn(count, dim).bfloat16()
        results = [native(isa, 2).moe(x, moe, uniform_request(count, 2)) for moe in (plain, coded)]
        assert _same_bits(*results), count


def test_a_panel_holds_a_patch_for_each_128_weights_and_no_more() -> None:
    """1,024 inputs: 256 patches."""
    common = torch.full((32, 1024), 0.0)
    for value in range(8):  # eight values of the upper bits
        common[:, value::8] = 4.0 ** (value - 4)
    rare = common.clone()
    rare.view(-1)[::128] = 1e9
    packer = native(ISAS[0], quantization="lossless")
    (matrix,) = packer.pack_linear(rare.bfloat16()).matrices
    assert torch.equal(_decoded(matrix, 1024), rare.bfloat16())
    rare.view(-1)[1] = 1e9
    assert packer.pack_linear(rare.bfloat16()).matrices[0].format == BFLOAT16


def test_a_row_of_another_scale_fits_beside_the_others() -> None:
    """As output heads have it for tokens that no text of the training contained."""
    weight = _random(32, 1024)
    weight[5] *= 1e-20
    (matrix,) = native(ISAS[0], quantization="lossless").pack_linear(weight).matrices
    assert matrix.format == CODED and torch.equal(_decoded(matrix, 1024), weight)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("count", [0, 3, 2**32 - 1])
def test_a_damaged_list_of_patches_changes_nothing_but_the_panel(isa: str, count: int) -> None:
    """Under the sanitizers: no patch is read or applied outside."""
    packed = native(ISAS[0], quantization="lossless").pack_linear(_random(64, 130))
    panels = packed.matrices[0].panels.view(-1, packed.matrices[0].stride)
    panels[:, 16:20] = torch.tensor([count]).to(torch.uint32).view(torch.uint8)[:4]
    panels[:, 64 : 64 + 4 * 48] = torch.randint(0, 256, (2, 4 * 48), dtype=torch.uint8)
    for rows in (1, 70):
        assert native(isa).linear(torch.randn(rows, 130).bfloat16(), packed).shape == (rows, 64)


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_matrix_of_any_bits_stays_in_bfloat16_and_experts_are_refused(is_stream: bool) -> None:
    any_bits = torch.randint(-(2**15), 2**15, (64, 64)).to(torch.int16).view(torch.bfloat16)
    weight = torch.where(any_bits.abs() < 1e4, any_bits, 0.0)
    packer, x = native(ISAS[-1], 2, "lossless"), torch.randn(5, 64).bfloat16()
    given = TensorStream(weight.dtype, (64, 64), iter((weight[:32], weight[32:]))) if is_stream else weight
    packed = packer.pack_linear(given)
    assert packed.matrices[0].format == BFLOAT16
    assert _same_bits(packer.linear(x, packed), packer.linear(x, native(ISAS[-1]).pack_linear(weight)))
    with pytest.raises(CheckpointError, match="expert 0 has too many different exponents for --quantization lossless"):
        packer.pack_ffn(FfnWeights(weight, weight, weight))


def test_normal_weights_take_three_quarters_and_a_little() -> None:
    plain, coded = (
        native(ISAS[0], quantization=kind).pack_linear(_random(64, 4096)).matrices[0] for kind in ("none", "lossless")
    )
    assert coded.panels.nbytes / plain.panels.nbytes == pytest.approx(0.766, abs=0.001)
