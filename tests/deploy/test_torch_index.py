"""deploy/torch_index.py: torch without CUDA where there is no card; pip's own index where that cannot be reached."""

import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from deploy.torch_index import AUTO, CPU_INDEX, choose
from tests.support.paths import ROOT
from tests.support.ports import free_port


class Index(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/whl/cpu/torch/" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")  # goes before proxies of the environment


@pytest.fixture
def index() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/whl/cpu"
    server.shutdown()
    thread.join()
    server.server_close()


def chosen(index: str, wanted: str = AUTO, platform: str = "linux", with_card: bool = False) -> tuple[str, str]:
    return choose(wanted, platform=platform, with_card=with_card, cpu_index=index)


def test_without_a_card_the_cpu_index_is_taken_and_the_line_names_it(index: str) -> None:
    url, line = chosen(index)
    assert url == index and index in line and "no NVIDIA card" in line


def test_an_index_that_cannot_be_reached_or_has_no_torch_leaves_pips_own_and_a_line_says_so(index: str) -> None:
    for missing in (f"http://127.0.0.1:{free_port()}/whl/cpu", index.removesuffix("/cpu"), "no url"):
        url, line = chosen(missing)
        assert url == "" and f"{missing} cannot be reached" in line


def test_a_card_or_another_system_takes_pips_own_index(index: str) -> None:
    assert chosen(index, with_card=True)[0] == chosen(index, platform="darwin")[0] == ""


def test_a_named_index_is_taken_whatever_the_machine_has(index: str) -> None:
    assert chosen(index, wanted="http://mirror", with_card=True)[0] == "http://mirror"
    assert chosen(index, wanted="")[0] == ""


def test_the_program_prints_the_index_alone() -> None:
    ran = subprocess.run(
        [sys.executable, ROOT / "deploy" / "torch_index.py", CPU_INDEX], capture_output=True, text=True, check=True
    )
    assert ran.stdout == f"{CPU_INDEX}\n" and ran.stderr.count("\n") == 1


def test_the_makefile_asks_the_program() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert f"TORCH_INDEX ?= {AUTO}\n" in makefile and "deploy/torch_index.py" in makefile
