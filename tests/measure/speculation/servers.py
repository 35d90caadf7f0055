"""Lookup of this server, of llama.cpp's and of vLLM's on the bundled model: a text that repeats its prompt, and one
that does not.

Called by `python -m tests.measure.speculation.speed --llama-server PATH --vllm PATH`. The programs generate greedily,
with lookup and without, in turns. A figure is the median of its rounds. Read each program's ratio, not the tokens per
second beside each other: the model is tiny, so that this measures what drafting costs.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

from tests.measure.gguf.demo_file import write_demo
from tests.support.paths import DEMO
from tests.support.ports import free_port
from tests.support.servers.running import MODEL, start_server

NUM_ROUNDS, MAX_TOKENS, START_S = 5, 200, 300.0
REPEATED = "One two three four five six seven eight nine ten. "
TEXTS = {"repeated": REPEATED * 8, "free": "It is a truth universally acknowledged, that"}
LOOKUP = ["--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", "4", "--spec-ngram-simple-size-m", "16"]
NGRAM = {"method": "ngram", "num_speculative_tokens": 16, "prompt_lookup_max": 4, "prompt_lookup_min": 2}


def compare_servers(llama_server: Path | None, vllm: Path | None, threads: int | None) -> None:
    """Print a line for each text and program: tokens per second without and with lookup, and their ratio."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        count = ["--threads", str(threads)] if threads else []
        urls = {}
        for mode in ("off", "auto"):
            ours = start_server("--dtype", "float32", "--speculation", mode, *count)
            urls["smoe", mode] = stack.enter_context(ours).url
        if llama_server:
            write_demo(folder / "demo.gguf")
            for mode, flags in (("off", []), ("auto", LOOKUP)):
                command = [llama_server, "-m", folder / "demo.gguf", "--parallel", "1", "-c", "2048", *flags, *count]
                urls["llama-server", mode] = stack.enter_context(_started(command))
        if vllm:
            for mode, flags in (("off", []), ("auto", ["--speculative-config", json.dumps(NGRAM)])):
                command = [vllm, "serve", DEMO, "--served-model-name", MODEL, "--dtype", "bfloat16", *flags]
                urls["vllm", mode] = stack.enter_context(_started(command, {"VLLM_CPU_KVCACHE_SPACE": "1"}))
        for name, prompt in TEXTS.items():
            _compare_text(name, prompt, urls)


def _compare_text(name: str, prompt: str, urls: Mapping[tuple[str, str], str]) -> None:
    rates: dict[tuple[str, str], list[float]] = {key: [] for key in urls}
    for _ in range(NUM_ROUNDS + 1):
        for key, url in urls.items():
            rates[key].append(_tokens_per_s(url, prompt))
    for program in dict.fromkeys(program for program, _ in urls):
        off, auto = (statistics.median(rates[program, mode][1:]) for mode in ("off", "auto"))
        sys.stdout.write(f"{name:8s} {program:12s}: {off:7.1f} tok/s off, {auto:7.1f} lookup, {auto / off:5.2f} x\n")
    sys.stdout.flush()


def _tokens_per_s(url: str, prompt: str) -> float:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": MAX_TOKENS, "temperature": 0, "ignore_eos": True}
    start_s = time.perf_counter()
    reply = httpx.post(f"{url}/v1/completions", json=body, timeout=120).raise_for_status().json()
    return float(reply["usage"]["completion_tokens"] / (time.perf_counter() - start_s))


@contextmanager
def _started(command: list[str | Path], variables: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run a server on a free port. Raises SystemExit if it does not start."""
    port = free_port()
    words = [str(word) for word in (*command, "--host", "127.0.0.1", "--port", port)]
    environment = {**os.environ, **(variables or {})}
    with tempfile.TemporaryFile() as log, subprocess.Popen(words, stdout=log, stderr=log, env=environment) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            deadline_s = time.monotonic() + START_S
            while not _is_ready(url):
                if process.poll() is not None or time.monotonic() > deadline_s:
                    log.seek(0)
                    raise SystemExit(f"{words[0]} does not start:\n{log.read()[-1000:].decode(errors='replace')}")
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=1).status_code == 200
    except httpx.TransportError:
        return False
