"""Unusable tokenizers, chat templates and sampling defaults."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from server.lifecycle.text_frontend import load_texts
from server.settings.sources import load_settings
from tests.e2e.bad_checkpoints.start import GENERATION, TOKENIZER, TOKENIZER_CONFIG, refusal
from tests.support.checkpoints.mixtral import Shape, random_model, save_in_layout
from tests.support.paths import DEMO
from tests.support.servers.inline_sandbox import InlineSandbox

TEXT_FILES: dict[str, tuple[str, bytes | None, str]] = {
    "no tokenizer": (TOKENIZER, None, "no tokenizer"),
    "empty tokenizer": (TOKENIZER, b"", TOKENIZER),
    "corrupt tokenizer": (TOKENIZER, b"\x0a\xff\xff\xff" * 99, TOKENIZER),
    "invalid tokenizer.json": ("tokenizer.json", b"{}", ""),
    "invalid tokenizer_config.json": (TOKENIZER_CONFIG, b"[]", TOKENIZER_CONFIG),
    "an added id behind the vocabulary": ("added_tokens.json", b'{"<x>": 3072}', "3072"),
    "an added id far behind the vocabulary": ("added_tokens.json", b'{"<x>": 1000000000000}', "1000000000000"),
    "a negative added id": ("added_tokens.json", b'{"<x>": -1}', "added_tokens.json"),
    "an added id that is not a number": (
        TOKENIZER_CONFIG,
        b'{"added_tokens_decoder": {"x": {"content": "a"}}}',
        "added_tokens",
    ),
    "added tokens that are not an object": (TOKENIZER_CONFIG, b'{"added_tokens_decoder": 5}', "added_tokens_decoder"),
    "invalid generation_config.json": (GENERATION, b"{", GENERATION),
    "a temperature that is not a number": (GENERATION, b'{"temperature": "hot"}', "temperature"),
    "a temperature above the maximum": (GENERATION, b'{"temperature": 1e9}', "temperature"),
    "a top_p of zero": (GENERATION, b'{"top_p": 0}', "top_p"),
    "a fractional top_k": (GENERATION, b'{"top_k": 1.5}', "top_k"),
    "an end token behind the vocabulary": (GENERATION, b'{"eos_token_id": 3072}', "eos_token_id"),
    "NaN as a number": (GENERATION, b'{"temperature": NaN}', GENERATION),
}


@pytest.mark.parametrize("name", TEXT_FILES)
def test_an_invalid_text_file_is_named(name: str, checkpoint: Path) -> None:
    file, content, part = TEXT_FILES[name]
    (checkpoint / file).unlink(missing_ok=True)
    if content is not None:
        (checkpoint / file).write_bytes(content)
    if file == "tokenizer.json":
        (checkpoint / TOKENIZER).unlink()
    line = refusal(checkpoint)
    assert part in line and (file in line or "token" in line), line


def test_a_tokenizer_larger_than_the_model_is_refused_with_both_numbers(tmp_path: Path) -> None:
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
def test_a_chat_template_that_cannot_work_ends_the_start(name: str, checkpoint: Path) -> None:
    (checkpoint / TOKENIZER_CONFIG).write_text(json.dumps({"chat_template": TEMPLATES[name]}))
    assert "template" in refusal(checkpoint)


@pytest.mark.parametrize("template", ["{{ raise_exception('never') }}", "", "{{ bos_token }}"])
def test_a_chat_template_that_refuses_or_is_almost_empty_starts(template: str, checkpoint: Path) -> None:
    (checkpoint / TOKENIZER_CONFIG).write_text(json.dumps({"chat_template": template}))
    asyncio.run(load_texts(load_settings({"model": str(checkpoint)}), checkpoint, InlineSandbox()))
