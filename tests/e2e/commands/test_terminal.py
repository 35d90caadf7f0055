"""`smoe chat` and `smoe complete` against a real server, the chat in a pseudo-terminal."""

import codecs
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIG_DFL, SIGINT, signal

import psutil

from tests.support.forked.commands import run
from tests.support.ports import free_port
from tests.support.servers.running import KEY, MODEL, RunningServer

COUNT = "Count from 3 to 7."
TIMEOUT_S = 60.0
PASTE, PASTED = "\x1b[200~", "\x1b[201~"  # around a pasted text
UP, CTRL_C, CTRL_D = "\x1b[A", "\x03", "\x04"


class Terminal:
    """A command in a pseudo-terminal."""

    def __init__(
        self, url: str, state: Path, *flags: str, kind: str = "dumb", command: str = "chat", **variables: str
    ) -> None:
        arguments = [sys.executable, "-m", "server", command, "--url", url, *flags]
        self._fd, slave = pty.openpty()
        environment = os.environ | {"XDG_STATE_HOME": str(state), "TERM": kind, "NO_COLOR": "1"} | variables
        self.process = subprocess.Popen(
            arguments,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: signal(
                SIGINT, SIG_DFL
            ),  # the default of foreground processes; background ones inherit an ignored SIGINT
        )
        os.close(slave)
        self._seen = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def expect(self, pattern: str) -> str:
        """Wait for `pattern`; return the output since the last match, including this one."""
        deadline = time.monotonic() + TIMEOUT_S
        while not (match := re.search(pattern, self._seen)):
            readable, _, _ = select.select([self._fd], [], [], max(0, deadline - time.monotonic()))
            assert readable, self._seen
            self._seen += self._decoder.decode(os.read(self._fd, 4096))
        shown, self._seen = self._seen[: match.end()], self._seen[match.end() :]
        return shown

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._fd)


@contextmanager
def chat(server: RunningServer, state: Path, *flags: str, kind: str = "dumb") -> Iterator[Terminal]:
    terminal = Terminal(server.url, state, *flags, kind=kind)
    try:
        terminal.expect(rf"{MODEL}.*\r\n(\x1b\[\?2004h)?> ")
        yield terminal
    finally:
        terminal.close()


def test_three_pasted_lines_are_one_message(server: RunningServer, tmp_path: Path) -> None:
    with chat(server, tmp_path, "--stats", "--temperature", "0", kind="xterm") as terminal:
        terminal.type(f"{PASTE}Count\nfrom 3\nto 7.{PASTED}")
        terminal.type("\r")
        shown = terminal.expect(r"\[(no tokens|\d+ \+ .*)\]\r\n\x1b\[\?2004h> ")
        assert shown.count("\x1b[?2004l") == 1, "one message was read"
        terminal.type("/quit\r")
        assert terminal.process.wait(TIMEOUT_S) == 0


def test_prompt_and_figures_are_coloured_and_the_answer_is_not(server: RunningServer, tmp_path: Path) -> None:
    terminal = Terminal(server.url, tmp_path, "--stats", "--temperature", "0", kind="xterm", NO_COLOR="")
    try:
        terminal.expect(r"\x1b\[1;36m> \x1b\[0m")
        terminal.type(f"{COUNT}\r")
        terminal.expect(r"\r\n(\x1b\[\?2004l\r?)?3 4 5 6 7\r\n\x1b\[2m\[15 \+ 11 tokens.*\]\x1b\[0m\r\n")
    finally:
        terminal.close()


def test_a_piped_chat_writes_answers_only_and_an_error_to_standard_error(server: RunningServer) -> None:
    def chat_from_pipe(text: str, *flags: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "server", "chat", "--url", server.url, "--temperature", "0", *flags]
        return run(command, input=text, timeout=TIMEOUT_S)

    result = chat_from_pipe(f"{COUNT}\n/reset\n{COUNT}\n")
    expected = "3 4 5 6 7\na new conversation\n3 4 5 6 7\n"
    assert (result.returncode, result.stdout, result.stderr) == (0, expected, "")
    failed = chat_from_pipe(f"{COUNT}\n", "--max-tokens", "9999")
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.startswith("smoe: This model's maximum context")


def complete(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "-m", "server", "complete", *arguments], input=stdin, timeout=TIMEOUT_S)


def test_an_answer_is_shown_with_its_figures(server: RunningServer, tmp_path: Path) -> None:
    with chat(server, tmp_path, "--stats", "--temperature", "0") as terminal:
        terminal.type(f"{COUNT}\n")
        assert "3 4 5 6 7" in terminal.expect(r"\[15 \+ 11 tokens, first after \d+ ms.*, stop, seed -?\d+\]\r\n> ")
        terminal.type("/stats\n")
        terminal.expect(r"15 \+ 11 tokens")


def test_a_message_continues_the_conversation_until_a_reset(server: RunningServer, tmp_path: Path) -> None:
    with chat(server, tmp_path, "--stats", "--temperature", "0") as terminal:
        for message, num_tokens in ((COUNT, 15), (COUNT, 40), ("/reset", 0), (COUNT, 15)):
            terminal.type(f"{message}\n")
            shown = terminal.expect(r"a new conversation" if not num_tokens else r"\[(\d+) \+ \d+ tokens")
            if num_tokens == 15:
                assert "[15 +" in shown
            elif num_tokens:
                assert int(shown.rsplit("[", 1)[1].split(" ")[0]) > 30


def test_the_arrow_key_recalls_lines_of_an_earlier_chat(server: RunningServer, tmp_path: Path) -> None:
    with chat(server, tmp_path, "--temperature", "0") as terminal:
        terminal.type(f"{COUNT}\n")
        terminal.expect("3 4 5 6 7\r\n> ")
        terminal.type(CTRL_D)
        assert terminal.process.wait(TIMEOUT_S) == 0
    with chat(server, tmp_path, "--temperature", "0") as terminal:
        terminal.type(f"{UP}\n")
        terminal.expect("3 4 5 6 7\r\n> ")


def test_ctrl_c_aborts_an_answer_but_not_the_chat(server: RunningServer, tmp_path: Path) -> None:
    with chat(server, tmp_path, "--stats", "--seed", "5", "--temperature", "2") as terminal:
        with server.engine_stopped():
            terminal.type(f"{COUNT}\n")
            server.await_load(1)
            terminal.process.send_signal(SIGINT)
            terminal.expect(r"\[no tokens\]\r\n> ")
        server.await_load(0)
        terminal.type("Count from 3 to 99.\n")  # at this temperature the text fills the context
        terminal.expect(r"\r\n\w")
        with server.engine_stopped():
            is_in_the_middle = server.load == 1
            if not is_in_the_middle:  # on a fast machine the answer may be complete before the signal
                terminal.expect(r", (stop|length), seed 5\]\r\n> ")
            terminal.process.send_signal(SIGINT)
            terminal.expect(r", stopped, seed 5\]\r\n> " if is_in_the_middle else r"\r\n> ")
        server.await_load(0)
        terminal.type("/quit\n")
        assert terminal.process.wait(TIMEOUT_S) == 0


def test_the_experts_are_shown_layer_by_layer(server: RunningServer, tmp_path: Path) -> None:
    with chat(server, tmp_path, "--temperature", "0") as terminal:
        terminal.type(f"{COUNT}\n")
        terminal.expect("7\r\n> ")
        terminal.type("/experts\n")
        shown = terminal.expect(r"layer 4 .*\r\n")
        assert all(re.search(rf"layer {layer}  \|.{{8}}\|  most: expert \d, \d+%", shown) for layer in range(5))


def test_a_completion_goes_to_standard_output_and_its_figures_do_not(server: RunningServer) -> None:
    expected = server.complete("It was", max_tokens=20, temperature=0).json()["choices"][0]["text"]
    result = complete("-", "--url", server.url, "--max-tokens", "20", "--temperature", "0", "--stats", stdin="It was")
    assert (result.returncode, result.stdout) == (0, expected + "\n")
    assert "+ 20 tokens" in result.stderr
    piped = complete("--url", server.url, "--max-tokens", "20", "--temperature", "0", stdin="It was")
    assert (piped.returncode, piped.stdout) == (0, expected + "\n")


def test_a_completion_follows_a_schema_ends_at_a_stop_text_and_is_printed_whole(
    server: RunningServer, tmp_path: Path
) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(schema | {"additionalProperties": False}))
    given = ("--url", server.url, "-t", "0", "-n", "40")
    result = complete("A person: ", *given, "--schema", str(path), "--json")
    assert (result.returncode, result.stderr) == (0, "")
    [choice] = json.loads(result.stdout)["choices"]
    assert isinstance(json.loads(choice["text"])["age"], int) and choice["finish_reason"] == "stop"
    whole = complete("It was", *given).stdout
    assert complete("It was", *given, "--stop", whole[5:9]).stdout == whole[: whole.index(whole[5:9])] + "\n"


def test_a_question_is_answered_once(server: RunningServer) -> None:
    command = [sys.executable, "-m", "server", "chat", "--url", server.url, "-t", "0", "-q", COUNT, "--stats"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert (result.returncode, result.stdout) == (0, "3 4 5 6 7\n")
    assert "15 + 11 tokens" in result.stderr


def test_the_message_of_a_rejected_request_is_printed(server: RunningServer) -> None:
    result = complete("It was", "--url", server.url, "--max-tokens", "9999")
    assert (result.returncode, result.stdout) == (2, "")
    [line] = result.stderr.splitlines()
    assert line.startswith("smoe: ") and "2048" in line.replace(",", "")


def test_without_a_server_one_line_says_how_to_start_one() -> None:
    command = [sys.executable, "-m", "server", "complete", "It was", "--url", f"127.0.0.1:{free_port()}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert result.returncode == 2
    [line] = result.stderr.splitlines()
    assert "smoe serve" in line


def test_a_server_with_a_key_says_which_flag_is_missing(locked: RunningServer) -> None:
    refused = complete("It was", "--url", locked.url)
    assert refused.returncode == 2 and "--api-key" in refused.stderr
    assert complete("It was", "--url", locked.url, "--api-key", KEY, "--max-tokens", "2").returncode == 0


def run_command(state: Path, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
    """Start `smoe run`; its input, output and errors are pipes."""
    pipe = subprocess.PIPE
    given = {"XDG_STATE_HOME": str(state), "SMOE_PORT": str(free_port()), "SMOE_THREADS": "1", **variables}
    command = [sys.executable, "-m", "server", "run", *arguments]
    return subprocess.Popen(command, env=os.environ | given, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def test_run_starts_a_server_answers_and_ends_it(tmp_path: Path) -> None:
    with run_command(tmp_path, "smoe-demo", COUNT, "--temperature", "0") as running:
        assert running.communicate(timeout=TIMEOUT_S) == ("3 4 5 6 7\n", "")
    assert running.returncode == 0
    log = (tmp_path / "smoe" / "run.log").read_text()
    [url] = re.findall(r"at (http://\S+) after", log)
    assert complete("It was", "--url", url).stderr.startswith("smoe: no server at")


def test_the_server_of_run_ends_with_a_command_that_is_killed(tmp_path: Path) -> None:
    with run_command(tmp_path, "--temperature", "0") as running:
        assert running.stdin and running.stdout
        running.stdin.write(f"{COUNT}\n")
        running.stdin.flush()
        assert running.stdout.readline() == "3 4 5 6 7\n"
        family = psutil.Process(running.pid).children(recursive=True)
        assert len(family) >= 2, "server and engine"
        running.kill()
    assert psutil.wait_procs(family, TIMEOUT_S)[1] == []


def test_run_uses_the_server_that_runs(server: RunningServer, tmp_path: Path) -> None:
    port = server.url.rsplit(":", 1)[1]
    with run_command(tmp_path, "smoe-demo", COUNT, "--temperature", "0", SMOE_PORT=port) as running:
        assert running.communicate(timeout=TIMEOUT_S) == ("3 4 5 6 7\n", "")
    assert running.returncode == 0 and not (tmp_path / "smoe" / "run.log").exists()


def test_run_of_a_model_that_cannot_be_served_says_why_in_one_line(tmp_path: Path) -> None:
    with run_command(tmp_path, "/no/where") as running:
        output, errors = running.communicate(timeout=TIMEOUT_S)
    assert (running.returncode, output) == (2, "")
    assert errors == "smoe: /no/where: no such file or directory; `smoe models` lists what is on this machine\n"


def top(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "server", "top", *flags]
    return run(command, timeout=TIMEOUT_S)


def test_top_prints_one_reading_into_a_pipe(server: RunningServer) -> None:
    result = top("--url", server.url)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"{MODEL}  ready\n") and "\x1b" not in result.stdout
    assert all(f"\n{name} " in result.stdout for name in ("requests", "answers", "KV cache", "first token"))


def test_top_without_a_server_is_one_line() -> None:
    result = top("--url", f"127.0.0.1:{free_port()}")
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)


def test_top_redraws_on_a_terminal_until_ctrl_c(server: RunningServer, tmp_path: Path) -> None:
    terminal = Terminal(server.url, tmp_path, kind="xterm", command="top")
    try:
        for _ in range(2):
            terminal.expect(rf"\x1b\[H{MODEL}  ready")
        terminal.process.send_signal(SIGINT)
        terminal.expect(r"\x1b\[\?1049l")
        assert terminal.process.wait(TIMEOUT_S) == 0
    finally:
        terminal.close()
