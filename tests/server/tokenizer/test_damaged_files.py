"""A damaged tokenizer file ends the start with one line that names a file, whatever the damage."""

import asyncio
import base64
import copy
import json
import os
import random
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from server.chat import template_jobs
from server.chat.jinja_sandbox import SandboxedTemplate
from server.cli.experts.measurement import ExpertTextError, read_texts
from server.errors import ApiError
from server.lifecycle.text_frontend import load_texts
from server.settings.settings import Settings
from server.tokenizer.byte_level import CHARACTERS
from server.tokenizer.config_files import MAX_ADDED_CHARS, MAX_FILE_BYTES, TokenizerError
from server.tokenizer.tokenizer import load_tokenizer
from tests.server.cli.test_main import smoe
from tests.support.paths import ROOT
from tests.support.servers.inline_sandbox import InlineSandbox

MODEL = (ROOT / "model" / "demo" / "tokenizer.model").read_bytes()
BYTES = {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "added_tokens": [
        {"id": i, "content": text, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False}
        for i, text in enumerate(("<unk>", "<s>", "</s>"))
    ],
    "normalizer": {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "\u2581"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        ],
    },
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": None,
    "model": {
        "type": "BPE",
        "unk_token": "<unk>",
        "fuse_unk": True,
        "byte_fallback": True,
        "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, **BYTES, "a": 259, "b": 260, "\u2581": 261, "ab": 262},
        "merges": [["a", "b"]],
    },
}  # fmt: skip
BYTE_LEVEL: dict[str, Any] = {
    "version": "1.0",
    "normalizer": None,
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": r"\s+|\S+"}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    },
    "post_processor": {
        "type": "Sequence",
        "processors": [{"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}]}],
    },
    "added_tokens": TOKENIZER["added_tokens"],
    "model": {
        "type": "BPE",
        "ignore_merges": True,
        "vocab": {"<s>": 1, "</s>": 2} | {text: 3 + i for i, text in enumerate(CHARACTERS.values())} | {"ab": 259},
        "merges": [["a", "b"]],
    },
}
FIRST_PIECES = [
    {"rank": i, "token_bytes": base64.b64encode(bytes([i])).decode(), "token_str": None} for i in range(256)
]
TEKKEN: dict[str, Any] = {
    "config": {
        "pattern": r"\s+|\S+",
        "num_vocab_tokens": 257,
        "default_vocab_size": 261,
        "default_num_special_tokens": 4,
        "version": "v7",
    },
    "special_tokens": [{"rank": i, "token_str": text} for i, text in enumerate(("<unk>", "<s>", "</s>"))],
    "vocab": [{"rank": 256, "token_bytes": "YWI=", "token_str": "ab"}],  # behind FIRST_PIECES
}
# 2^24 ways through it at each "a" in front of another letter or at the end, of which none is a match.
ENDLESS = "(?:(?=a)|(?=.))" * 24 + "(?!.)"
SPLIT_ENDLESSLY = {"type": "Split", "pattern": {"Regex": ENDLESS}, "behavior": "Isolated", "invert": False}
JSON_FILES: dict[str, dict[str, Any]] = {
    "tokenizer.json": TOKENIZER,
    "tokenizer_config.json": {
        "bos_token": {"content": "<s>"},
        "eos_token": "</s>",
        "additional_special_tokens": ["<x>"],
        "added_tokens_decoder": {"263": {"content": "<x>", "special": True}, "264": {"content": "y"}},
        "chat_template": [{"name": "default", "template": "{{ messages[0]['content'] }}"}],
        "legacy": False,
    },
    "special_tokens_map.json": {"unk_token": "<unk>", "pad_token": {"content": "</s>"}},
    "added_tokens.json": {"z": 265},
    "generation_config.json": {"eos_token_id": [2], "temperature": 0.5, "top_k": 5},
}
RUNNER = asyncio.Runner()  # one for all: it has threads, which take longer to start than files to load
LONG = "x" * (MAX_ADDED_CHARS + 1)
HOSTILE: tuple[Any, ...] = (
    None, True, -1, 0, 7, 2**31, 2**63, 10**30, 10**400, 0.5, float("inf"), float("nan"), "", "\x00", "\ud800", "²",
    "٣", "9" * 5000, "4294967295", "a", LONG, [], [[]], {},
    {"content": 5}, {"content": "\udfff"}, [{"name": []}], [None, 5],
    {"\ud800": 1}, {LONG: 1}, {"type": "Prepend"},
)  # fmt: skip


@pytest.fixture(autouse=True)
def _each_template_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most damage leaves the template as it is, and compiling it takes longer than all else."""
    monkeypatch.setattr(template_jobs, "SandboxedTemplate", _compiled_template)


@pytest.fixture(scope="module", autouse=True)
def _close_the_loop() -> Iterator[None]:
    yield
    RUNNER.close()


_compiled_template = lru_cache(maxsize=64)(SandboxedTemplate)


def write_files(path: Path, **changed: bytes) -> None:
    for name, content in JSON_FILES.items():
        (path / name).write_bytes(changed.get(name) or json.dumps(content).encode())


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each container below `value` with each of its keys or indexes; of the pieces only a few."""
    keys = list(value)[-5:] if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places(value[key])


def mutations(content: dict[str, Any]) -> Iterator[bytes]:
    """Yield `content` with one value replaced, or one key renamed, by each hostile value."""
    text = json.dumps(content)
    for position in range(len(list(places(content)))):
        for hostile in HOSTILE:
            changed = json.loads(text)
            container, key = list(places(changed))[position]
            container[key] = hostile
            yield json.dumps(changed).encode()
            if isinstance(container, dict) and isinstance(hostile, str):
                container[hostile] = content_of(content, position)
                del container[key]
                yield json.dumps(changed).encode()


def content_of(content: dict[str, Any], position: int) -> Any:
    container, key = list(places(content))[position]
    return container[key]


def load(path: Path) -> str | None:
    """Load and use the text frontend. Return the message of the refusal, or None."""
    try:
        texts = RUNNER.run(load_texts(Settings(), path, InlineSandbox()))
    except TokenizerError as error:
        return str(error)
    tokenizer = texts.tokenizer
    ids = tokenizer.encode("ab <s> \u00e9\n") + tokenizer.encode_with_specials("<s>ab</s><x>y")
    tokenizer.decode(ids)
    assert all(isinstance(raw, bytes) for raw in tokenizer.vocabulary().tokens)
    return None


def check(path: Path) -> bool:
    """Load; return True if the files were refused, with one short line that names a file or folder."""
    message = load(path)
    if message is None:
        return False
    assert "\n" not in message and len(message) < 1000, message
    message.encode()
    return True


def test_the_files_without_damage_are_loaded(tmp_path: Path) -> None:
    write_files(tmp_path)
    assert load(tmp_path) is None


@pytest.mark.parametrize("name", JSON_FILES)
def test_any_hostile_value_in_a_json_file_is_refused_in_one_line_or_harmless(tmp_path: Path, name: str) -> None:
    write_files(tmp_path)
    refused = 0
    for content in mutations(JSON_FILES[name]):
        (tmp_path / name).write_bytes(content)
        refused += check(tmp_path)
    assert refused > 5


def test_any_hostile_value_in_a_byte_level_file_is_refused_in_one_line_or_harmless(tmp_path: Path) -> None:
    write_files(tmp_path, **{"tokenizer.json": json.dumps(BYTE_LEVEL).encode()})
    assert load(tmp_path) is None
    refused = 0
    for content in mutations(BYTE_LEVEL):
        (tmp_path / "tokenizer.json").write_bytes(content)
        refused += check(tmp_path)
    assert refused > 100


def test_any_hostile_value_in_a_tekken_file_is_refused_in_one_line_or_harmless(tmp_path: Path) -> None:
    def is_refused(changed: bytes) -> bool:
        content = json.loads(changed)
        if isinstance(content.get("vocab"), list):
            content["vocab"] = [*FIRST_PIECES, *content["vocab"]]
        (tmp_path / "tekken.json").write_text(json.dumps(content))
        return check(tmp_path)

    assert not is_refused(json.dumps(TEKKEN).encode())
    assert sum(map(is_refused, mutations(TEKKEN))) > 100


@pytest.mark.parametrize("name", [*JSON_FILES, "tokenizer.model"])
def test_flipped_and_cut_bytes_are_refused_in_one_line_or_harmless(tmp_path: Path, name: str, scale: int) -> None:
    rng = random.Random(name)
    write_files(tmp_path)
    content = MODEL if name == "tokenizer.model" else (tmp_path / name).read_bytes()
    for _ in range(60 * scale):
        damaged = bytearray(content)
        for _ in range(rng.choice((1, 3, 50))):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        if rng.random() < 0.3:
            del damaged[rng.randrange(len(damaged)) :]
        (tmp_path / name).write_bytes(damaged)
        check(tmp_path)


def test_ids_and_lengths_are_bounded_by_name(tmp_path: Path) -> None:
    far = copy.deepcopy(TOKENIZER)
    far["model"]["vocab"]["ab"] = 2**32 - 1
    negative = copy.deepcopy(TOKENIZER)
    negative["added_tokens"][0]["id"] = -1
    cases: tuple[tuple[str, Any, str], ...] = (
        ("tokenizer.json", far, "far beyond"),
        ("tokenizer.json", negative, "token id"),
        ("added_tokens.json", {"z": 2**31}, "token id"),
        ("added_tokens.json", {LONG: 266}, "characters"),
        ("added_tokens.json", {"z": 2**31 - 1}, "far beyond"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"9" * 5000: "z"}}, "must map ids"),
        ("tokenizer_config.json", {"bos_token": "\ud800"}, "Unicode"),
        ("special_tokens_map.json", {"pad_token": LONG}, "characters"),
        ("generation_config.json", {"eos_token_id": 2**31}, "token id"),
        ("added_tokens.json", {f"{i:0200}": 300 + i for i in range(6000)}, "characters"),
    )
    for name, content, part in cases:
        write_files(tmp_path)
        (tmp_path / name).write_text(json.dumps(content))
        with pytest.raises(TokenizerError, match=part) as caught:
            load_tokenizer(tmp_path)
        assert name in str(caught.value) or "tokenizer.json: " in str(caught.value)


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json", "tokenizer_config.json", "config.json"])
def test_a_file_above_64_mib_is_refused_by_its_size(tmp_path: Path, name: str) -> None:
    write_files(tmp_path)
    path = tmp_path / name
    path.touch()
    os.truncate(path, MAX_FILE_BYTES + 1)
    with pytest.raises(TokenizerError, match=f"{name}: larger than 64 MiB"):
        load_tokenizer(tmp_path)


def test_pieces_that_are_not_utf_8_are_refused(tmp_path: Path) -> None:
    place = MODEL.index("\u2581the".encode())
    (tmp_path / "tokenizer.model").write_bytes(MODEL[:place] + b"\xff" + MODEL[place + 1 :])
    with pytest.raises(TokenizerError, match=r"tokenizer\.model"):
        load_tokenizer(tmp_path)


def test_spellings_as_long_as_allowed_and_all_prefixes_of_each_other_still_load(tmp_path: Path) -> None:
    write_files(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"q" * MAX_ADDED_CHARS: 300, "w" * MAX_ADDED_CHARS: 301}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("q" * MAX_ADDED_CHARS)[-1] == 300
    nested = {"q" * length: 300 + length for length in range(1, MAX_ADDED_CHARS + 1)}
    (tmp_path / "added_tokens.json").write_text(json.dumps(nested))
    check(tmp_path)


def test_a_control_token_of_one_character_never_comes_from_plain_text(tmp_path: Path) -> None:
    write_files(tmp_path)
    config = {"added_tokens_decoder": {"259": {"content": "a", "special": True}}, "legacy": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    for text in ("a", "aa", "ba", "b a b"):
        assert 259 not in tokenizer.encode(text)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b'{"model": {"byte_fallback": true}, "added_tokens": [{"content": "x"}]}'),
        ("tokenizer.json", json.dumps(TOKENIZER | {"pre_tokenizer": SPLIT_ENDLESSLY}).encode()),
        ("added_tokens.json", b'{"\\ud800": 265}'),
        ("tokenizer_config.json", b'{"chat_template": [{"name": []}], "bos_token": "\\ud800"}'),
    ],
)
def test_the_command_exits_with_2_and_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    write_files(tmp_path)
    (tmp_path / "config.json").write_text("{}")  # so that the folder is a model's
    (tmp_path / name).write_bytes(content)
    refused = smoe("serve", str(tmp_path), "--port", "0")
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    assert [name in line for line in refused.stderr.splitlines() if line.startswith("smoe: ")] == [True]


def test_a_text_on_which_the_rules_of_the_file_give_up_is_refused(tmp_path: Path) -> None:
    """At the start there is one such text: "a", by which the rule for the leading space is found."""
    content = copy.deepcopy(TOKENIZER) | {"pre_tokenizer": copy.deepcopy(SPLIT_ENDLESSLY)}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: its rules give up on the text 'a'"):
        load_tokenizer(tmp_path)
    content["pre_tokenizer"]["pattern"]["Regex"] = ENDLESS.replace("=a", "=b")
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.encode("aa")) == "aa"
    with pytest.raises(ApiError, match="cannot split this text into words"):
        tokenizer.encode("b")
    (tmp_path / "text").write_text("b")
    with pytest.raises(ExpertTextError, match=r"text: .* cannot split this text into words"):
        read_texts([tmp_path / "text"], tokenizer, 100)
