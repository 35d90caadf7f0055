"""Mutated headers are refused by an error of one line, or describe a checkpoint; nothing else happens."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from model.checkpoint.checkpoint import read_config, read_stored_weights
from model.checkpoint.errors import CheckpointError
from server.tokenizer.tokenizer import TokenizerError, load_tokenizer
from tests.model.checkpoint.test_mistral_layout import save_as_mistral
from tests.support.checkpoints.gguf import GgufShape, all_of, iq2_m, write_gguf
from tests.support.checkpoints.mixtral import Shape, random_model, save_in_layout
from tests.support.checkpoints.quantized import save_quantized

NUM_MUTATIONS = 500
EXTREMES = [0, 1, 2**7, 2**8 - 1, 2**15, 2**16, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]
PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "a", "b", "ab", "\u2581", "\u2581a"]
VOCABULARY = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": PIECES,
    "tokenizer.ggml.scores": [-float(i) for i in range(len(PIECES))],
    "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * (len(PIECES) - 259)],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.chat_template": "{{ messages }}",
}


YARN_FIELDS = {
    "llama.rope.scaling.type": "yarn",
    "llama.rope.scaling.factor": 4.0,
    "llama.rope.scaling.original_context_length": 128,
    "llama.rope.scaling.attn_factor": 1.1,
    "llama.rope.scaling.yarn_log_multiplier": 1.0,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 8.0,
    "original_max_position_embeddings": 128,
    "beta_fast": 32,
    "beta_slow": 1.5,
    "mscale": 1.0,
    "mscale_all_dim": 0.707,
    "truncate": False,
}


def mutations(content: bytes, seed: int, count: int) -> Iterator[bytes]:
    """Change a few bytes, write extreme numbers, insert, remove, repeat or cut."""
    rng = random.Random(seed)
    for _ in range(count):
        mutated = bytearray(content)
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            place, width = rng.randrange(len(mutated)), rng.choice((1, 4, 8))
            kind = rng.randrange(6)
            if kind == 0:
                mutated[place] ^= 1 << rng.randrange(8)
            elif kind == 1:
                mutated[place] = rng.randrange(256)
            elif kind == 2:
                mutated[place : place + width] = (rng.choice(EXTREMES) % 256**width).to_bytes(width, "little")
            elif kind == 3:
                mutated[place:place] = rng.randbytes(width)
            elif kind == 4:
                del mutated[place : place + width]
            else:
                mutated[place : place + 8] = mutated[place : place + 8] * 2
        yield bytes(mutated)


def assert_read_or_refused(path: Path) -> bool:
    """Read everything that a start reads before the first weight; return whether it was accepted."""
    try:
        config, _ = read_config(path)
        read_stored_weights(path, config)
        if path.is_file():
            load_tokenizer(path)
    except (CheckpointError, TokenizerError) as error:
        message = str(error)
        assert "\n" not in message and len(message) < 600 and str(path.parent) in message, message
        return False
    return True


def _accepted(path: Path, write: Callable[[bytes], object], contents: Iterator[bytes]) -> int:
    accepted = 0
    for content in contents:
        write(content)
        accepted += assert_read_or_refused(path)
    return accepted


SMALL = GgufShape(
    dim=32, num_heads=2, num_kv_heads=1, hidden_dim=32, num_experts=2, vocab_size=len(PIECES), fields=VOCABULARY
)
GGUF_FILES = {
    "one tensor per expert": (replace(SMALL, merged=False), all_of("Q4_0")),
    "merged": (SMALL, all_of("Q4_0")),
    "code books": (replace(SMALL, dim=256, hidden_dim=256), iq2_m),
    "scaled by YaRN": (replace(SMALL, fields=VOCABULARY | YARN_FIELDS), all_of("Q4_0")),
}


@pytest.mark.parametrize("name", GGUF_FILES)
def test_mutated_gguf_headers(name: str, tmp_path: Path, scale: int) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(path, *GGUF_FILES[name])
    assert assert_read_or_refused(path)
    content = path.read_bytes()
    start = min(tensor.start for tensor in read_stored_weights(path, read_config(path)[0]).values())
    # Most of the header is vocabulary: half of the mutations strike elsewhere.
    lengths = (start, start - content.index(b"token_embd.weight") + 8)
    for seed, length in enumerate(lengths, 2 * list(GGUF_FILES).index(name)):
        header = content[start - length : start]
        before, after = content[: start - length], content[start:]
        changed = mutations(header, seed, NUM_MUTATIONS * scale // 4)
        accepted = _accepted(path, lambda middle: path.write_bytes(before + middle + after), changed)  # noqa: B023
        assert accepted < NUM_MUTATIONS * scale // 4


def test_a_cut_gguf_file_is_refused_at_every_length(tmp_path: Path, scale: int) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(path, SMALL, all_of("Q4_0"))
    content = path.read_bytes()
    lengths = sorted(random.Random(0).sample(range(len(content)), 100 * scale))
    assert _accepted(path, path.write_bytes, (content[:length] for length in lengths)) == 0


LAYOUTS = ["AWQ", "GPTQ", "compressed-tensors, zeros", "FP8", "nf4, nested", "MLX", "Mistral", "Hugging Face"]
LAYOUTS += ["MLX mixed", "compressed-tensors, zeros as bytes", "YaRN"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_mutated_headers_of_directories(name: str, tmp_path: Path, scale: int) -> None:
    """Configs, and the JSON headers of safetensors files: names, types, shapes, places."""
    shape = Shape(dim=64, num_heads=2, num_kv_heads=1, num_layers=1, hidden_dim=64, num_experts=2, vocab_size=96)
    if name == "YaRN":
        shape = replace(shape, extra={"rope_parameters": YARN})
    if name == "Mistral":
        path, config = tmp_path, "params.json"
        save_as_mistral(path, shape)
    else:
        path, config = save_in_layout(random_model(shape), tmp_path / "plain"), "config.json"
        if name not in ("Hugging Face", "YaRN"):
            save_quantized(path, tmp_path / "quantized", name)
            path = tmp_path / "quantized"
    assert assert_read_or_refused(path)
    weights = next(path.glob("*.safetensors"))
    content, settings, count = weights.read_bytes(), (path / config).read_bytes(), NUM_MUTATIONS * scale // 14
    end = 8 + int.from_bytes(content[:8], "little")
    accepted = _accepted(path, (path / config).write_bytes, mutations(settings, 1, count))
    (path / config).write_bytes(settings)
    headers = mutations(content[:end], 2, count)
    accepted += _accepted(path, lambda header: weights.write_bytes(header + content[end:]), headers)
    assert accepted < 2 * count
