"""A server with LoRA adapters: chosen by `model` at every endpoint, listed, and named in the fingerprint."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from model.checkpoint.config_file import load_config
from tests.support.checkpoints.adapters import random_tensors, save_adapter
from tests.support.conditions import wait_until
from tests.support.paths import DEMO
from tests.support.servers.running import MODEL, RunningServer, forked_server, wait_until_ready

COMPLETION = {"prompt": "It is a truth universally acknowledged, that a single man", "max_tokens": 20, "temperature": 0}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, config = tmp_path_factory.mktemp("adapters"), load_config(DEMO)[0]
    return [save_adapter(folder / str(i), random_tensors(config, 2, i), lora_alpha=12) for i in (1, 2)]


@pytest.fixture(scope="module")
def lora_server(adapters: list[Path]) -> Iterator[RunningServer]:
    flags = ("--lora", f"sql={adapters[0]}", "--lora", f"poems={adapters[1]}", "--enable-runtime-lora")
    with forked_server("--dtype", "float32", "--threads", "1", "--embeddings", *flags) as running:
        yield running


def test_each_adapter_answers_under_its_name(lora_server: RunningServer, server: RunningServer) -> None:
    with httpx.Client(base_url=lora_server.url, timeout=120) as client:
        names = [MODEL, "sql", "poems"]
        listed = client.get("/v1/models").json()["data"]
        assert [(entry["id"], entry["parent"]) for entry in listed] == [(MODEL, None), ("sql", MODEL), ("poems", MODEL)]
        for path, body in _bodies():
            replies = {name: client.post(path, json={"model": name, **body}).json() for name in names}
            assert [replies[name]["model"] for name in names] == names, replies
            assert len({str(_answer(reply)) for reply in replies.values()}) == 3, "the adapters change nothing"
            plain = httpx.post(f"{server.url}{path}", json={"model": MODEL, **body}, timeout=120).json()
            assert _answer(plain) == _answer(replies[MODEL])
            fingerprints = [reply.get("system_fingerprint") for reply in replies.values()]
            assert fingerprints[0] == plain.get("system_fingerprint")
            if fingerprints[0]:
                assert len(set(fingerprints)) == 3
                assert all(name.startswith(f"{fingerprints[0]}-lora-") for name in fingerprints[1:])
        unknown = client.post("/v1/completions", json={"model": "SQL", **COMPLETION})
        assert unknown.status_code == 404 and "sql, poems" in unknown.json()["error"]["message"]
        counted = client.post("/tokenize", json={"model": "sql", "prompt": "It was"})
        assert counted.json()["count"] == 3


def _bodies() -> list[tuple[str, dict[str, Any]]]:
    messages = [{"role": "user", "content": "Who was Mr. Darcy?"}]
    return [
        ("/v1/completions", COMPLETION),
        ("/v1/chat/completions", {"messages": messages, "max_tokens": 20, "temperature": 0}),
        ("/v1/responses", {"input": "Who was Mr. Darcy?", "max_output_tokens": 20, "temperature": 0}),
        ("/v1/messages", {"messages": messages, "max_tokens": 20, "temperature": 0}),
        ("/v1/embeddings", {"input": "Who was Mr. Darcy?"}),
    ]


def _answer(reply: dict[str, Any]) -> object:
    """Return the generated text, or the embedding."""
    if "choices" in reply:
        return [choice.get("text") or choice["message"]["content"] for choice in reply["choices"]]
    if "data" in reply:
        return reply["data"][0]["embedding"]
    if "output" in reply:
        return [part["text"] for item in reply["output"] for part in item["content"]]
    return [part["text"] for part in reply["content"]]


def test_an_adapter_that_is_unloaded_finishes_its_requests_and_can_be_loaded_again(
    lora_server: RunningServer, adapters: list[Path]
) -> None:
    long = {"model": "python", **COMPLETION, "max_tokens": 200, "ignore_eos": True, "stream": True}
    with httpx.Client(base_url=lora_server.url, timeout=120) as client:
        for _ in range(2):
            loaded = client.post("/v1/load_lora_adapter", json={"lora_name": "python", "lora_path": str(adapters[1])})
            assert loaded.json()["id"] == "python", loaded.text
            with client.stream("POST", "/v1/completions", json=long) as reply:
                lines = reply.iter_lines()
                next(lines)
                with httpx.Client(base_url=lora_server.url, timeout=120) as other:
                    assert other.post("/v1/unload_lora_adapter", json={"lora_name": "python"}).status_code == 200
                    assert other.post("/v1/completions", json={"model": "python", **COMPLETION}).status_code == 404
                assert list(lines)[-2:] == ["data: [DONE]", ""]
        wrong = client.post("/v1/load_lora_adapter", json={"lora_name": "bad", "lora_path": str(adapters[0] / "no")})
        assert wrong.status_code == 400 and "no such directory" in wrong.json()["error"]["message"]


def test_an_adapter_that_is_replaced_finishes_its_requests_and_others_have_the_new_one(
    lora_server: RunningServer, adapters: list[Path]
) -> None:
    long = {"model": "python", **COMPLETION, "max_tokens": 200, "ignore_eos": True, "stream": True}
    with httpx.Client(base_url=lora_server.url, timeout=120) as client:

        def load(directory: Path) -> int:
            body = {"lora_name": "python", "lora_path": str(directory), "load_inplace": True}
            return client.post("/v1/load_lora_adapter", json=body).status_code

        def fingerprint(name: str) -> str:
            reply = client.post("/v1/completions", json={"model": name, **COMPLETION}).json()
            return str(reply["system_fingerprint"])

        assert load(adapters[1]) == 200
        with (
            httpx.Client(base_url=lora_server.url, timeout=120) as other,
            other.stream("POST", "/v1/completions", json=long) as reply,
        ):
            lines = reply.iter_lines()
            next(lines)
            assert load(adapters[0]) == 200
            assert fingerprint("python") == fingerprint("sql") != fingerprint("poems")
            assert list(lines)[-2:] == ["data: [DONE]", ""]
        assert load(adapters[0]) == load(adapters[0] / "no") - 200 == 200
        assert fingerprint("python") == fingerprint("sql")
        client.post("/v1/unload_lora_adapter", json={"lora_name": "python"}).raise_for_status()
        assert fingerprint("sql") != fingerprint("poems")


def test_a_crash_of_the_engine_costs_only_the_adapters_whose_files_are_gone(
    lora_server: RunningServer, tmp_path: Path
) -> None:
    config = load_config(DEMO)[0]
    seeds = {"gone": 3, "changed": 4}
    folders = {name: save_adapter(tmp_path / name, random_tensors(config, 2, seed)) for name, seed in seeds.items()}
    with httpx.Client(base_url=lora_server.url, timeout=120) as client:
        for name, folder in folders.items():
            client.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(folder)}).raise_for_status()
        names = [MODEL, "sql", "poems", "changed"]
        before = {name: client.post("/v1/completions", json={"model": name, **COMPLETION}).json() for name in names}
        shutil.rmtree(folders["gone"])
        save_adapter(folders["changed"], random_tensors(config, 2, 5))
        os.kill(lora_server.engine_pid, signal.SIGKILL)
        wait_until(lambda: client.get("/health/ready").status_code == 503)
        wait_until_ready(lora_server)
        assert [entry["id"] for entry in client.get("/v1/models").json()["data"]] == names
        assert client.post("/v1/completions", json={"model": "gone", **COMPLETION}).status_code == 404
        after = {name: client.post("/v1/completions", json={"model": name, **COMPLETION}).json() for name in names}
        for name in names:
            is_same = after[name]["system_fingerprint"] == before[name]["system_fingerprint"]
            assert is_same == (_answer(after[name]) == _answer(before[name])) == (name != "changed")
    log = lora_server.log.read_text()
    assert f"the LoRA adapter 'gone' is served no more: {folders['gone']}" in log
    assert f"the LoRA adapter 'changed' has other files than before: {folders['changed']}" in log
