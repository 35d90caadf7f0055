"""A GGUF file is planned, checked and served like a directory: with the tokenizer and the chat template in it."""

from pathlib import Path

import httpx
import pytest

from tests.e2e.bad_checkpoints.test_command import serve
from tests.server.cli.plan.test_memory import as_json, plan
from tests.support.checkpoints.gguf import GgufShape, iq2_m, vocabulary_fields, write_gguf
from tests.support.checkpoints.packs import make_pack
from tests.support.paths import DEMO
from tests.support.servers.running import forked_server

VOCAB_SIZE = 3072
END_OF_TURN = VOCAB_SIZE - 1
TEMPLATE = "{{ bos_token }}{% for message in messages %}<{{ message.content }}>{% endfor %}"


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "mixtral-tiny.Q4_K_M.gguf"
    fields = vocabulary_fields(DEMO / "tokenizer.model") | {"tokenizer.chat_template": TEMPLATE}
    fields["tokenizer.ggml.tokens"][END_OF_TURN] = "<|im_end|>"
    write_gguf(path, GgufShape(vocab_size=VOCAB_SIZE, fields=fields))
    return path


def assert_served(model: Path, expected_name: str, *flags: str) -> None:
    with forked_server("--threads", "1", *flags, model=str(model)) as server:
        client = httpx.Client(base_url=server.url, timeout=60)
        name = client.get("/v1/models").json()["data"][0]["id"]
        messages = [{"role": "user", "content": "Hello"}]
        prompt = client.post("/tokenize", json={"model": name, "messages": messages}).json()["tokens"]
        text = client.post("/detokenize", json={"model": name, "tokens": prompt}).json()["prompt"]
        body = {"model": name, "messages": messages, "max_tokens": 5, "temperature": 0, "ignore_eos": True}
        reply = client.post("/v1/chat/completions", json=body).json()
        only_end = {"model": name, "messages": messages, "max_tokens": 5, "allowed_token_ids": [END_OF_TURN]}
        ended = client.post("/v1/chat/completions", json=only_end).json()
    assert name == expected_name
    assert text.replace("<s>", "").strip() == "<Hello>"
    assert reply["usage"]["completion_tokens"] == 5 and reply["usage"]["prompt_tokens"] == len(prompt)
    assert ended["choices"][0]["finish_reason"] == "stop", (
        "ChatML's end of a turn ends an answer, whatever the file says"
    )


def test_a_gguf_file_is_verified_and_served(gguf_file: Path) -> None:
    result = plan(gguf_file, "--write-manifest", "--memory", "1GiB")
    assert result.exit_code == 0 and f"{gguf_file}.sha256: SHA-256 sums of 1 files" in result.stderr
    assert_served(gguf_file, "mixtral-tiny.Q4_K_M", "--verify")


def test_a_pack_of_a_gguf_file_is_served_with_the_tokenizer_and_the_template_of_the_file(
    gguf_file: Path, tmp_path: Path
) -> None:
    assert_served(make_pack(gguf_file, tmp_path / "packed"), "packed")


def test_a_file_with_code_books_is_planned_verified_and_served(tmp_path: Path) -> None:
    path = tmp_path / "mixtral-tiny.IQ2_M.gguf"
    fields = vocabulary_fields(DEMO / "tokenizer.model")
    write_gguf(path, GgufShape(vocab_size=VOCAB_SIZE, fields=fields), iq2_m)
    result = plan(path, "--write-manifest", "--memory", "1GiB")
    assert result.exit_code == 0 and "IQ2_XXS" in result.stdout
    body = {"model": "mixtral-tiny.IQ2_M", "prompt": "Hello", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    with forked_server("--threads", "1", "--verify", model=str(path)) as server:
        reply = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).json()
    assert reply["usage"]["completion_tokens"] == 8 and reply["choices"][0]["text"]


def test_a_plan_of_a_gguf_file_reads_only_headers(gguf_file: Path, tmp_path: Path) -> None:
    cut = tmp_path / "headers.gguf"
    with gguf_file.open("rb") as source, cut.open("wb") as copy:
        copy.write(source.read(200_000))
        copy.truncate(gguf_file.stat().st_size)  # the rest is a hole
    fields = as_json(cut, "--memory", "1GiB", "--rope-theta", "500000")
    assert fields["total_parameters"] == 256 * (2 * 3072 + 2 * 256 + 2 * 128 + 4 + 12 * 256 + 3)
    assert fields["dtype"] == "bfloat16" and fields["fits"]
    assert fields["command"][3:5] == ["--rope-theta", "500000"]


def test_a_file_that_cannot_be_served_ends_with_one_line(gguf_file: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(gguf_file.read_bytes()[:-1])
    changed = tmp_path / "changed.gguf"
    changed.write_bytes(gguf_file.read_bytes()[:-1] + b"\x55")
    plan(gguf_file, "--write-manifest", "--memory", "1GiB")
    (tmp_path / "changed.gguf.sha256").write_text(
        Path(f"{gguf_file}.sha256").read_text().replace(gguf_file.name, changed.name)
    )
    expected = {
        (damaged,): "damaged or incomplete: the file ends within tensor",
        (changed, "--verify", "--port", "0"): "is damaged: its SHA-256 sum differs from the one in changed.gguf.sha256",
    }
    for (path, *flags), pattern in expected.items():
        code, lines = serve(path, *flags)
        assert code == 2 and pattern in lines[-1], lines
        assert not [line for line in lines if "Traceback" in line]
