"""Text from a server cannot control the terminal that shows it, and reaches a file unchanged."""

import json
import os
import pty
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from server.cli.main import app
from server.cli.terminal_text import escape_controls, write_text
from tests.support.paths import ROOT
from tests.support.terminal_stream import TerminalStream

CLIPBOARD = "\x1b]52;c;bHM=\x07"  # OSC 52: writes the clipboard
TEXT = f"a\tb\n{CLIPBOARD}\x1b[2J\r\x9b31m"
SHOWN = "a\tb\n\\x1b]52;c;bHM=\\x07\\x1b[2J\\x0d\\x9b31m"
MODEL_ID = "m\x1b[31m"


def test_no_character_that_a_terminal_obeys_is_left() -> None:
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        shown = escape_controls(character)
        if character in "\n\t":
            assert shown == character
        elif unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
            assert shown == (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")
        elif unicodedata.bidirectional(character) in ("LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"):
            assert shown == f"\\u{code:04x}"
        else:
            assert shown == character


def test_text_of_any_script_is_shown_as_it_is() -> None:
    for text in ("Grüße, 世界", "مرحبا", "👩\u200d👩\u200d👧", "e\u0301", "C:\\x1b"):
        assert escape_controls(text) == text


def test_a_sequence_that_is_split_over_pieces_is_escaped_and_a_file_gets_it_raw() -> None:
    for is_terminal, expected in ((True, SHOWN), (False, TEXT)):
        stream = TerminalStream(is_terminal=is_terminal)
        for character in TEXT:
            write_text(character, stream)
        assert stream.getvalue() == expected


class Handler(BaseHTTPRequestHandler):
    """A server whose model id, text and errors are full of control characters."""

    def do_GET(self) -> None:
        self._reply(200, json.dumps({"data": [{"id": MODEL_ID}]}).encode())

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if request.get("prompt") == "fail":
            self._reply(400, json.dumps({"error": {"message": TEXT}}).encode())
            return
        body = {"text": TEXT} if "prompt" in request else {"delta": {"content": TEXT}}
        chunk = {"choices": [{**body, "finish_reason": "stop" + CLIPBOARD}], "seed": 1}
        self._reply(200, b"data: %s\n\ndata: [DONE]\n\n" % json.dumps(chunk).encode())

    def _reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def malicious_server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def in_terminal(*arguments: str, typed: str = "", state: str = "") -> str:
    """Run `smoe` in a pseudo-terminal until it ends; return what the terminal gets."""
    parent, child = pty.openpty()
    os.write(parent, typed.encode())
    environment = os.environ | {"XDG_STATE_HOME": state, "TERM": "dumb"}
    process = subprocess.Popen(
        [sys.executable, "-m", "server", *arguments], stdin=child, stdout=child, stderr=child, env=environment, cwd=ROOT
    )
    os.close(child)
    shown = b""
    try:
        while piece := os.read(parent, 4096):
            shown += piece
    except OSError:  # Linux's end of file of a pseudo-terminal
        pass
    process.wait()
    os.close(parent)
    return shown.decode().replace("\r\n", "\n")


def test_a_completion_in_a_terminal_is_escaped_with_its_figures() -> None:
    with malicious_server() as url:
        shown = in_terminal("complete", "x", "--url", url, "--stats")
    assert shown.startswith(SHOWN + "\n") and "stop\\x1b]52" in shown
    assert not set(shown) & {"\x1b", "\x07", "\r", "\x9b"}


def test_an_error_message_in_a_terminal_is_escaped() -> None:
    with malicious_server() as url:
        assert in_terminal("complete", "fail", "--url", url) == f"smoe: {SHOWN}\n"


def test_a_chat_in_a_terminal_is_escaped(tmp_path: os.PathLike[str]) -> None:
    with malicious_server() as url:
        shown = in_terminal("chat", "--url", url, "--stats", typed="hello\n/quit\n", state=str(tmp_path))
    assert "m\\x1b[31m. /help lists" in shown and SHOWN in shown and "stop\\x1b]52" in shown
    assert not set(shown) & {"\x1b", "\x07", "\x9b"}


@pytest.mark.usefixtures("clean_environment")
def test_a_pipe_gets_the_text_unchanged() -> None:
    with malicious_server() as url:
        result = CliRunner().invoke(app, ["complete", "x", "--url", url])
    assert result.stdout_bytes.decode() == TEXT + "\n"
