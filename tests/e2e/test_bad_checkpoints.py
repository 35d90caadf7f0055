"""A start that cannot succeed ends with one line that names what is wrong: no traceback, and never ready.

Most cases go through the start's own functions, in this process; a few, one of each kind, through `smoe serve`.
"""

import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.engine import Engine
from engine.errors import EngineConfigError
from model.errors import CheckpointError
from server.plan import write_manifest
from server.serve import StartError, load_texts
from server.settings import SettingsError, engine_config, load_settings
from server.tokenizer_files import TokenizerError
from tests.checkpoints import DEMO, Shape, edit_config, random_model, save_in_layout

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
TOKENIZER, TOKENIZER_CONFIG, GENERATION = "tokenizer.model", "tokenizer_config.json", "generation_config.json"
W1 = "model.layers.0.block_sparse_moe.experts.1.w1.weight"
GATE = "model.layers.1.block_sparse_moe.gate.weight"
SMALL = {"dtype": "float32", "threads": 1, "num_kv_blocks": 8, "max_num_batched_tokens": 32, "block_size": 16}


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint that starts: random weights, the bundled model's texts."""
    path = save_in_layout(random_model(Shape(num_experts=4, vocab_size=3072)), tmp_path_factory.mktemp("good"))
    for name in (TOKENIZER, TOKENIZER_CONFIG, GENERATION):
        shutil.copy(DEMO / name, path)
    return path


@pytest.fixture
def checkpoint(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "checkpoint"))


def start(path: Path, **flags: Any) -> None:
    """What `smoe serve` does before it is ready, but for the sockets."""
    given = {name: value for name, value in (SMALL | flags).items() if value is not None}
    settings = load_settings({"model": str(path), **given})
    texts = load_texts(settings, path)
    engine = Engine.load(engine_config(settings, path), lambda *progress: None)
    texts.tokenizer.check_fits(engine.ready().vocab_size)


def refusal(path: Path, **flags: Any) -> str:
    """The line with which the start of such a checkpoint ends."""
    kinds = (SettingsError, StartError, TokenizerError, CheckpointError, EngineConfigError)
    with pytest.raises(kinds) as caught:
        start(path, **flags)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 600
    return line


def test_the_checkpoint_that_is_changed_below_starts(good: Path) -> None:
    start(good)


def file_of(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with this header; `length` is what it says of the header's."""
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(content) if length is None else length).to_bytes(8, "little") + content + body


def entry(start: Any, end: Any, shape: Any = (1,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


FOUR = b"\0" * 4
MALFORMED: dict[str, bytes] = {
    "empty": b"",
    "seven bytes": b"\x01" * 7,
    "zeros": b"\0" * 4096,
    "no header": file_of(b""),
    "header's length beyond the file": file_of({}, length=1000),
    "header's length beyond all files": file_of({}, length=2**63),
    "header's length one short": file_of({"a": entry(0, 4)}, FOUR, length=len(json.dumps({"a": entry(0, 4)})) - 1),
    "header cut off": file_of({"a": entry(0, 4)})[:20],
    "header is no JSON": file_of(b"{hello"),
    "header is a list": file_of([]),
    "header is no UTF-8": file_of(b'{"\xff":{}}'),
    "header with NaN": file_of(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', FOUR),
    "a name twice": file_of(b'{"a":%b,"a":%b}' % ((json.dumps(entry(0, 4)).encode(),) * 2), FOUR),
    "unknown dtype": file_of({"a": entry(0, 4, dtype="X9")}, FOUR),
    "no offsets": file_of({"a": {"dtype": "F32", "shape": [1]}}, FOUR),
    "offsets reversed": file_of({"a": entry(4, 0)}, FOUR),
    "offsets negative": file_of({"a": entry(-4, 0)}, FOUR),
    "offsets of fractions": file_of({"a": entry(0.5, 4.5)}, FOUR),
    "offsets beyond the file": file_of({"a": entry(0, 8, [2])}, FOUR),
    "offsets that overlap": file_of({"a": entry(0, 4), "b": entry(2, 6)}, FOUR),
    "a gap": file_of({"a": entry(0, 4), "b": entry(8, 12)}, FOUR * 3),
    "bytes at the end": file_of({"a": entry(0, 4)}, FOUR * 2),
    "shape unlike its bytes": file_of({"a": entry(0, 4, [2])}, FOUR),
    "shape negative": file_of({"a": entry(0, 4, [-1])}, FOUR),
    "shape of texts": file_of({"a": entry(0, 4, ["1"])}, FOUR),
    "shape that overflows": file_of({"a": entry(0, 4, [2**32, 2**32, 4])}, FOUR),
    "metadata of numbers": file_of({"__metadata__": {"a": 5}, "a": entry(0, 4)}, FOUR),
    "GGUF": b"GGUF\x03\0\0\0" + b"\0" * 100,
}


@pytest.mark.parametrize("name", MALFORMED)
def test_b088_a_malformed_weight_file_is_named(name: str, checkpoint: Path) -> None:
    (checkpoint / WEIGHTS).write_bytes(MALFORMED[name])
    line = refusal(checkpoint)
    assert line.startswith(str(checkpoint / WEIGHTS)) or "is missing" in line, line


FOREIGN: dict[str, tuple[bytes, str]] = {
    "git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git lfs pull"),
    "HTML": (b"<!DOCTYPE html><html>404</html>", "HTML"),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("file", [WEIGHTS, CONFIG, GENERATION, INDEX, TOKENIZER, TOKENIZER_CONFIG])
def test_b08f_a_page_or_a_pointer_in_a_files_place_is_named(name: str, file: str, checkpoint: Path) -> None:
    content, part = FOREIGN[name]
    (checkpoint / file).write_bytes(content)
    line = refusal(checkpoint)
    assert file in line and part in line, line


@pytest.mark.parametrize(
    "content", [pickle.dumps({"a": [1.0]}), b"PK\x03\x04" + b"\0" * 99, pickle.dumps({"a": [1.0]}, protocol=0)]
)
def test_b08e_pickled_weights_are_never_opened(content: bytes, checkpoint: Path) -> None:
    (checkpoint / WEIGHTS).write_bytes(content)
    assert WEIGHTS in refusal(checkpoint)
    (checkpoint / WEIGHTS).rename(checkpoint / "pytorch_model.bin")
    assert "pytorch_model.bin' holds pickled weights" in refusal(checkpoint)


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path / WEIGHTS)
    change(tensors)
    save_file(tensors, path / WEIGHTS)


TENSORS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "missing": (lambda t: t.pop(W1), f"tensor {re.escape(W1)} is missing"),
    "transposed": (lambda t: t.update({W1: t[W1].T.contiguous()}), r"\[32, 48\].*\[48, 32\]"),
    "integers": (lambda t: t.update({W1: t[W1].to(torch.int8)}), "dtype I8"),
    "one more": (lambda t: t.update({"x": torch.zeros(1)}), "'x' has no place"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_b08b_a_tensor_that_does_not_fit_is_named(name: str, checkpoint: Path) -> None:
    change, pattern = TENSORS[name]
    rewrite(checkpoint, change)
    assert re.search(pattern, refusal(checkpoint))


def test_b089_shards_missing_cut_or_doubled_are_named(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / WEIGHTS)
    (checkpoint / WEIGHTS).unlink()
    first, second = checkpoint / "a.safetensors", checkpoint / "b.safetensors"
    half = len(tensors) // 2
    shards = {first: dict(list(tensors.items())[:half]), second: dict(list(tensors.items())[half:])}
    for file, shard in shards.items():
        save_file(shard, file)
    weight_map = {name: file.name for file, shard in shards.items() for name in shard}
    (checkpoint / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    start(checkpoint)
    content = second.read_bytes()
    second.write_bytes(content[:-1])
    assert "b.safetensors is damaged" in refusal(checkpoint)
    second.unlink()
    assert "b.safetensors is missing, though" in refusal(checkpoint)
    first.rename(second)
    first.write_bytes(content)
    assert "places tensor" in refusal(checkpoint)
    save_file(tensors, first)
    assert re.search(r"is in .*a\.safetensors and again in .*b\.safetensors", refusal(checkpoint))


NOT_CONFIGS: dict[str, bytes | None] = {
    "missing": None,
    "empty": b"",
    "not JSON": b"{",
    "a list": b"[]",
    "NaN": b'{"rope_theta": NaN}',
    "beyond a double": b'{"rope_theta": 1e999}',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "huge": b'{"a": "' + b"x" * (2 << 20) + b'"}',
    "deep": b'{"a":' + b"[" * 100_000,
    "a key twice": b'{"hidden_size": 1, "hidden_size": 2}',
}


@pytest.mark.parametrize("name", NOT_CONFIGS)
def test_b081_a_config_that_is_none_is_named(name: str, checkpoint: Path) -> None:
    content = NOT_CONFIGS[name]
    (checkpoint / CONFIG).unlink()
    if content is not None:
        (checkpoint / CONFIG).write_bytes(content)
    assert CONFIG in refusal(checkpoint)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        *[({"architectures": value}, "architectures") for value in (["LlamaForCausalLM"], [], None, ["Zebra"] * 2)],
        *[({"hidden_size": value}, "hidden_size") for value in (0, -1, 10**12, "32", 32.0, None, True, ...)],
        *[({"num_attention_heads": value}, "num_attention_heads") for value in (0, 3, 10**12)],
        *[({"num_key_value_heads": value}, "num_key_value_heads") for value in (3, 0, 5, "2")],
        *[({"num_local_experts": value}, "num_local_experts") for value in (0, -1, 10**12, None)],
        *[({"num_experts_per_tok": value}, "num_experts_per_tok") for value in (0, 5, "2")],
        *[({"vocab_size": value}, "vocab_size") for value in (0, -5, 10**12, "3072")],
        *[({"num_hidden_layers": value}, "num_hidden_layers") for value in (0, 10**9, 1.5)],
        *[({"rope_theta": value}, "rope_theta") for value in (0, -1, "1e6", ...)],
        *[({"rms_norm_eps": value}, "rms_norm_eps") for value in (0, -1e-5, 2, "x")],
        *[({"torch_dtype": value}, "dtype") for value in ("float8_e4m3fn", "int8", 5)],
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"eos_token_id": 3072}, "eos_token_id"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_size": 1 << 20, "num_attention_heads": 4096}, "shape"),
    ],
    ids=str,
)
def test_b082_to_b086_a_config_of_another_network_is_refused_by_its_key(
    change: dict[str, Any], part: str, checkpoint: Path
) -> None:
    edit_config(checkpoint, **change)
    assert part in refusal(checkpoint)


def test_b083_code_in_a_checkpoint_is_never_run(checkpoint: Path) -> None:
    edit_config(checkpoint, auto_map={"AutoModelForCausalLM": "modeling.Zebra"}, trust_remote_code=True)
    (checkpoint / "modeling.py").write_text("raise SystemExit('this was run')")
    start(checkpoint)


def test_b086_tied_weights_start_with_a_head_and_without(checkpoint: Path) -> None:
    edit_config(checkpoint, tie_word_embeddings=True)
    start(checkpoint)
    rewrite(checkpoint, lambda tensors: tensors.pop("lm_head.weight"))
    start(checkpoint)
    edit_config(checkpoint, tie_word_embeddings=False)
    assert "lm_head.weight is missing" in refusal(checkpoint)


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ({"max_model_len": 10_000}, "--max-model-len 1024 fits"),
        ({"max_model_len": 1000}, "--max-model-len 1"),  # more than 8 blocks hold: names the number that fits
        ({"num_kv_blocks": None, "kv_cache_memory_bytes": 1000}, "--kv-cache-memory-bytes is too small"),
        ({"num_kv_blocks": None, "kv_cache_memory_bytes": "900GiB"}, "GiB are free"),
        ({"experts_per_token": 5}, "the model has 4 experts"),
        ({"quantization": "fp8"}, "fp8"),
        ({"chat_template": "/no/where"}, "--chat-template"),
    ],
    ids=str,
)
def test_b087_b094_b096_a_flag_that_cannot_work_names_what_would(flags: dict[str, Any], part: str, good: Path) -> None:
    assert part in refusal(good, **flags)


TEXT_FILES: dict[str, tuple[str, bytes | None, str]] = {
    "no tokenizer": (TOKENIZER, None, "no tokenizer"),
    "empty tokenizer": (TOKENIZER, b"", TOKENIZER),
    "corrupt tokenizer": (TOKENIZER, b"\x0a\xff\xff\xff" * 99, TOKENIZER),
    "tokenizer.json that is none": ("tokenizer.json", b"{}", ""),
    "tokenizer_config.json that is none": (TOKENIZER_CONFIG, b"[]", TOKENIZER_CONFIG),
    "an added id beyond": ("added_tokens.json", b'{"<x>": 3072}', "3072"),
    "an added id far beyond": ("added_tokens.json", b'{"<x>": 1000000000000}', "1000000000000"),
    "an added id below": ("added_tokens.json", b'{"<x>": -1}', "added_tokens.json"),
    "an added id that is none": (
        TOKENIZER_CONFIG,
        b'{"added_tokens_decoder": {"x": {"content": "a"}}}',
        "added_tokens",
    ),
    "added tokens that are none": (TOKENIZER_CONFIG, b'{"added_tokens_decoder": 5}', "added_tokens_decoder"),
    "generation_config.json that is none": (GENERATION, b"{", GENERATION),
    "a temperature that is none": (GENERATION, b'{"temperature": "hot"}', "temperature"),
    "a temperature beyond": (GENERATION, b'{"temperature": 1e9}', "temperature"),
    "a top_p of zero": (GENERATION, b'{"top_p": 0}', "top_p"),
    "a top_k of fractions": (GENERATION, b'{"top_k": 1.5}', "top_k"),
    "an end token beyond": (GENERATION, b'{"eos_token_id": 3072}', "eos_token_id"),
    "numbers that are none": (GENERATION, b'{"temperature": NaN}', GENERATION),
}


@pytest.mark.parametrize("name", TEXT_FILES)
def test_b090_a_text_file_that_is_none_is_named(name: str, checkpoint: Path) -> None:
    file, content, part = TEXT_FILES[name]
    (checkpoint / file).unlink(missing_ok=True)
    if content is not None:
        (checkpoint / file).write_bytes(content)
    if file == "tokenizer.json":
        (checkpoint / TOKENIZER).unlink()
    line = refusal(checkpoint)
    assert part in line and (file in line or "token" in line), line


def test_b090_a_tokenizer_larger_than_the_model_is_refused_with_both_numbers(tmp_path: Path) -> None:
    path = save_in_layout(random_model(Shape(num_experts=4)), tmp_path)
    shutil.copy(DEMO / TOKENIZER, path)
    assert refusal(path).endswith("the tokenizer has 3072 tokens, the model's vocabulary 101")


TEMPLATES = {
    "syntax error": "{% for m in messages %}",
    "unknown tag": "{% zebra %}",
    "endless loop": "{% for i in range(10**12) %}x{% endfor %}",
    "loops in loops": "{% for i in range(9999) %}{% for j in range(9999) %}x{% endfor %}{% endfor %}",
    "10^8 characters": "{{ 'x' * 10**8 }}",
    "10^8 characters, padded": "{{ '{:>100000000}'.format(1) }}",
    "10^8 characters, by percent": "{{ '%100000000d' % 1 }}",
    "doubling": "{% set ns = namespace(t='xx') %}{% for i in range(99) %}{% set ns.t = ns.t + ns.t %}{% endfor %}",
    "a tower of powers": "{{ 10**10**10 }}",
    "calls itself": "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.system('id') }}",
    "attr filter": "{{ ''|attr('__class__')|attr('__mro__') }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "division": "{{ 1 / 0 }}",
    "no such filter": "{{ messages | zebra }}",
    "a megabyte": "x" * (2 << 20),
    "number": "{{ messages[0].content + 5 }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_b091_a_chat_template_that_cannot_work_ends_the_start(name: str, checkpoint: Path) -> None:
    (checkpoint / TOKENIZER_CONFIG).write_text(json.dumps({"chat_template": TEMPLATES[name]}))
    assert "template" in refusal(checkpoint)


@pytest.mark.parametrize("template", ["{{ raise_exception('never') }}", "", "{{ bos_token }}"])
def test_b091_a_chat_template_that_refuses_or_writes_little_starts(template: str, checkpoint: Path) -> None:
    (checkpoint / TOKENIZER_CONFIG).write_text(json.dumps({"chat_template": template}))
    load_texts(load_settings({"model": str(checkpoint)}), checkpoint)


def test_b08c_with_checksums_one_flipped_bit_names_its_file(checkpoint: Path) -> None:
    settings = load_settings({"model": str(checkpoint)})
    assert "--write-manifest" in refusal(checkpoint, verify=True)
    assert write_manifest(settings).endswith("SHA-256 sums of 5 files")
    start(checkpoint, verify=True)
    for name in (WEIGHTS, TOKENIZER, CONFIG, GENERATION):
        content = (checkpoint / name).read_bytes()
        spoilt = bytearray(content)
        at = len(spoilt) - 2 if name == WEIGHTS else spoilt.find(b"e")
        spoilt[at] ^= 1 if name == WEIGHTS else 0x20
        (checkpoint / name).write_bytes(spoilt)
        settings = load_settings({"model": str(checkpoint), **SMALL, "verify": True})
        with pytest.raises((CheckpointError, TokenizerError), match=re.escape(name)):
            Engine.load(engine_config(settings, checkpoint), lambda *progress: None)
        (checkpoint / name).write_bytes(content)
    start(checkpoint, verify=True)


def test_b08c_the_manifest_is_what_sha256sum_reads(checkpoint: Path) -> None:
    write_manifest(load_settings({"model": str(checkpoint)}))
    checked = subprocess.run(
        ["sha256sum", "-c", "SHA256SUMS"], cwd=checkpoint, capture_output=True, text=True, check=True
    )
    assert checked.stdout.count(": OK\n") == 5


def test_b08c_files_beside_the_list_or_missing_from_the_folder_are_named(checkpoint: Path) -> None:
    write_manifest(load_settings({"model": str(checkpoint)}))
    (checkpoint / "chat_template.jinja").write_text("x")
    assert "chat_template.jinja is not listed" in refusal(checkpoint, verify=True)
    (checkpoint / "chat_template.jinja").unlink()
    (checkpoint / GENERATION).unlink()
    assert "'generation_config.json' is missing, though" in refusal(checkpoint, verify=True)
    for content in ("", "Zebra\n", "0" * 64 + "\n"):
        (checkpoint / "SHA256SUMS").write_text(content)
        assert "is not a list of SHA-256 sums" in refusal(checkpoint, verify=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [W1, GATE, "model.norm.weight", "model.embed_tokens.weight"])
def test_b08d_a_weight_that_is_no_number_is_found_when_weights_are_verified(
    name: str, value: float, checkpoint: Path
) -> None:
    rewrite(checkpoint, lambda tensors: tensors[name].flatten()[-1].fill_(value))
    write_manifest(load_settings({"model": str(checkpoint)}))
    assert refusal(checkpoint, verify=True).endswith(f"tensor {name} has numbers that are not finite")


@pytest.mark.parametrize("fused", [False, True])
def test_b08d_an_expert_of_zeros_is_found_when_weights_are_verified(fused: bool, tmp_path: Path, good: Path) -> None:
    model = random_model(Shape(num_experts=4, vocab_size=3072))
    path = save_in_layout(model, tmp_path, fused=fused)
    shutil.copy(good / TOKENIZER, path)
    write_manifest(load_settings({"model": str(path)}))
    start(path, verify=True)
    name = "model.layers.0.mlp.experts.down_proj" if fused else W1
    rewrite(path, lambda tensors: (tensors[name][1] if fused else tensors[name]).zero_())
    write_manifest(load_settings({"model": str(path)}))
    assert refusal(path, verify=True).endswith(f"tensor {name} has an expert of zeros alone")


def serve(path: Path, *flags: str, **variables: str) -> tuple[int, list[str]]:
    """Exit code and output of `smoe serve`, which must end by itself."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SMOE_")} | variables
    command = [sys.executable, "-m", "server", "serve", str(path), *(flags or ("--port", "0"))]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    return ended.returncode, (ended.stdout + ended.stderr).splitlines()


@contextmanager
def taken_port() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield str(listener.getsockname()[1])


def test_the_command_ends_with_code_2_and_one_line(good: Path, tmp_path: Path) -> None:
    def changed(name: str, file: str, content: bytes) -> Path:
        path = Path(shutil.copytree(good, tmp_path / name))
        (path / file).write_bytes(content)
        return path

    (tmp_path / "empty").mkdir()
    free, small_pool = ("--port", "0"), ("--port", "0", "--kv-cache-memory-bytes", "1000", "--threads", "1")
    with taken_port() as port:
        starts: list[tuple[str, tuple[Any, ...], dict[str, str]]] = [
            ("no such directory", (tmp_path / "none",), {}),
            ("no tokenizer", (tmp_path / "empty", "--host", "0.0.0.0", *free), {}),
            (f"{WEIGHTS} is damaged", (changed("weights", WEIGHTS, b"\x01" * 99), *free), {}),
            (f"{TOKENIZER}", (changed("tokenizer", TOKENIZER, b"\xff" * 99), *free), {}),
            ("template", (changed("template", TOKENIZER_CONFIG, b'{"chat_template": "{{ 1 / 0 }}"}'), *free), {}),
            ("at least", (good, *small_pool), {}),
            ("--write-manifest", (good, *free, "--verify"), {}),
            (f"--port {port}: something else listens", (good, "--port", port), {}),
            ("--port: ", (good, "--port", "70000"), {}),
            ("--zebra", (good, "--zebra"), {}),
            ("exclude each other", (good, "--num-kv-blocks", "5", "--kv-cache-memory-bytes", "1GiB"), {}),
            ("enableServiceLinks", (good, "--host", "127.0.0.1"), {"SMOE_PORT": "tcp://10.0.0.1:80"}),
            ("SMOE_MAX_NUM_SEQS: ", (good, "--host", "127.0.0.1"), {"SMOE_MAX_NUM_SEQS": "1 6"}),
            ("given twice", (good, "--served-model-name", "a", "--served-model-name", "a"), {}),
        ]
        with ThreadPoolExecutor(2) as threads:
            ends = list(threads.map(lambda one: serve(*one[1], **one[2]), starts))
    for (part, _, _), (code, lines) in zip(starts, ends, strict=True):
        assert code == 2, (part, lines)
        assert part in lines[-1] and lines[-1].startswith("smoe: "), lines
        assert not [line for line in lines if "Traceback" in line or line.startswith("serving ")], lines

    warned = [
        part for (part, _, _), (_, lines) in zip(starts, ends, strict=True) if "WARNING: anyone" in " ".join(lines)
    ]
    assert warned == ["no tokenizer"]  # B-097: the one that listens everywhere, without a key
