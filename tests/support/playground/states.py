"""The states of the playground, one after the other in one visit of a `StubServer`: for tests and for pictures."""

from collections.abc import Callable

from playwright.sync_api import expect

from tests.support.playground.browser import Visit
from tests.support.playground.stub_server import StubServer

MARKDOWN = (
    "## Reading a file\n\nOpen it **with** a context manager:\n\n```python\ndef read(path):\n"
    "    with open(path) as file:\n        return file.read()\n```\n\n1. It closes the file.\n"
    "2. `open` raises *OSError*:\n   - no such file\n"
    "   - no permission\n\n> Errors should never pass silently.\n\n"
    "| mode | meaning | bytes |\n|------|:-------:|------:|\n| r    | read | 1,024 |\n| rb | read **bytes** | 16 |\n"
)
PROSE = "in her power to refuse; and she was obliged to be silent, till the carriage came to the door."


def words(text: str) -> list[str]:
    """Split a text into tokens: its words, with the blanks before them."""
    pieces = text.replace("\n", "\n\0").replace(" ", "\0 ").split("\0")
    return [piece for piece in pieces if piece]


def say(visit: Visit, message: str) -> None:
    visit.get("#message").fill(message)
    visit.page.keyboard.press("Enter")


def is_narrow(visit: Visit) -> bool:
    return bool(visit.page.evaluate("innerWidth <= 900"))


def empty(visit: Visit, stub: StubServer) -> None:
    expect(visit.get("#health")).to_have_attribute("data-phase", "ready")
    visit.get("#heat td").first.wait_for(state="attached")


def text(visit: Visit, stub: StubServer) -> None:
    stub.tokens = words(" " + PROSE)
    visit.write("It was not")
    visit.write("It was not")
    expect(visit.get("#versions")).to_contain_text("2/2")
    visit.page.mouse.move(0, 0)


def card(visit: Visit, stub: StubServer) -> None:
    visit.get("#continuation .t").nth(3).hover()
    expect(visit.get("#card")).to_be_visible()


def docked_card(visit: Visit, stub: StubServer) -> None:
    visit.get("#continuation .t").nth(3).click(button="right")
    visit.page.mouse.move(0, 0)
    expect(visit.get("#card")).to_be_visible()


def inside_token(visit: Visit, stub: StubServer) -> None:
    visit.get("#card").click()
    expect(visit.get("#card")).to_be_hidden()
    visit.get("#continuation .t").nth(3).click()
    expect(visit.get("#gates caption")).to_be_visible()


def weights(visit: Visit, stub: StubServer) -> None:
    visit.page.keyboard.press("Escape")
    expect(visit.get("#gates")).to_be_hidden()
    if is_narrow(visit):
        visit.choose("view", "sampling")
    visit.get("#weights").check()
    if is_narrow(visit):
        visit.choose("view", "write")
    visit.get("#continuation .t").nth(5).hover()
    expect(visit.get("#heat .path").first).not_to_have_attribute("data-weight", "")


def wide_map(visit: Visit, stub: StubServer) -> None:
    visit.page.mouse.move(0, 0)
    if is_narrow(visit):
        visit.choose("view", "inside")
    else:
        visit.get("#map-size").click()
    visit.choose("tint", "surprise")
    visit.get("#prompt-tokens .t").first.wait_for(state="attached")
    visit.get("#window").select_option("this answer")
    expect(visit.get("#readout")).to_contain_text("Least balanced")


def chat_empty(visit: Visit, stub: StubServer) -> None:
    visit.get("#window").select_option("last minute")
    if is_narrow(visit):
        visit.choose("view", "write")
    else:
        visit.get("#map-size").click()
    visit.choose("mode", "chat")
    expect(visit.get("#message")).to_be_focused()


def chat(visit: Visit, stub: StubServer) -> None:
    stub.tokens = words(MARKDOWN)
    say(visit, "How do I read a file in Python?")
    visit.wait_until_finished()
    expect(visit.get(".rendered pre").first).to_be_visible()


def branches(visit: Visit, stub: StubServer) -> None:
    stub.tokens, stub.finish_reason = words("With open, in a with statement"), "length"
    visit.get("#again").click()
    visit.wait_until_finished()
    expect(visit.get("article.assistant .branches")).to_contain_text("2/2")
    stub.finish_reason = "stop"


def editing(visit: Visit, stub: StubServer) -> None:
    visit.get("article.user").last.get_by_role("button", name="Edit").click()
    expect(visit.get(".editor textarea")).to_be_focused()


def streaming(visit: Visit, stub: StubServer) -> None:
    visit.get(".editor").get_by_role("button", name="Cancel").click()
    stub.released.clear()
    say(visit, "And how do I write one?")
    visit.get("article.streaming .t").first.wait_for()


def calls(visit: Visit, stub: StubServer) -> None:
    stub.released.set()
    visit.wait_until_finished()
    stub.calls, stub.finish_reason = [("get_weather", '{"city": "Oslo"}'), ("get_time", "{}")], "tool_calls"
    say(visit, "And how is the weather?")
    visit.wait_until_finished()
    visit.get(".results textarea").first.fill("2 degrees, rain")
    stub.calls, stub.finish_reason = [], "stop"


def results(visit: Visit, stub: StubServer) -> None:
    visit.get(".results button").click()
    visit.wait_until_finished()
    expect(visit.get("article.tool")).to_have_count(2)


def failed(visit: Visit, stub: StubServer) -> None:
    stub.failure = (503, "overloaded")
    say(visit, "Say it again.")
    expect(visit.get("#failure")).to_contain_text("overloaded")
    stub.failure = None


def history(visit: Visit, stub: StubServer) -> None:
    visit.get("#history-button").click()
    expect(visit.get("#history-list li")).to_have_count(2)


def renaming(visit: Visit, stub: StubServer) -> None:
    visit.get("#history-list li").first.get_by_role("button", name="Rename").click()
    expect(visit.get("#history-list input")).to_be_focused()


def compare(visit: Visit, stub: StubServer) -> None:
    visit.page.keyboard.press("Escape")
    visit.page.keyboard.press("Escape")
    expect(visit.get("#history-panel")).to_be_hidden()
    visit.choose("mode", "compare")
    stub.tokens = words(" " + PROSE)
    visit.get("#run").click()
    visit.wait_until_finished()


def server(visit: Visit, stub: StubServer) -> None:
    wave = [float(40 + 30 * (i % 7)) for i in range(60)]
    stub.recent |= dict.fromkeys(("generated_tokens_per_s", "step_ms", "ttft_p50_ms"), wave)
    stub.recent |= {"running": [float(i % 5) for i in range(60)], "kv_usage": [i / 120 for i in range(60)]}
    visit.choose("mode", "server")
    expect(visit.get(".chart b").first).to_have_text("130")


def unreachable(visit: Visit, stub: StubServer) -> None:
    stub.stop()
    expect(visit.get("#progress")).to_have_text("cannot be reached")
    expect(visit.get("#dashboard-status")).to_contain_text("No figures")


def without_key(visit: Visit, stub: StubServer) -> None:
    stub.api_key = "secret"
    stub.start()
    expect(visit.get("#dashboard-status")).to_contain_text("need the API key")
    visit.problems[:] = [problem for problem in visit.problems if "ERR_" not in problem]
    expect(visit.get("#key-panel")).to_be_visible()
    visit.get("#key").fill("wrong")
    visit.page.keyboard.press("Enter")
    expect(visit.get("#key-fault")).to_be_visible()


def loading(visit: Visit, stub: StubServer) -> None:
    visit.get("#key").fill("secret")
    visit.page.keyboard.press("Enter")
    expect(visit.get("#key-panel")).to_be_hidden()
    stub.phase = "loading"
    expect(visit.get("#health")).to_have_attribute("data-phase", "loading")
    visit.choose("mode", "compare")


def sampling(visit: Visit, stub: StubServer) -> None:
    stub.phase = "ready"
    expect(visit.get("#health")).to_have_attribute("data-phase", "ready")
    if is_narrow(visit):
        visit.choose("view", "sampling")
    visit.get("#sampling summary").click()
    visit.set_slider("#temperature", 1.3)
    visit.get("#format").select_option("schema")


def tools(visit: Visit, stub: StubServer) -> None:
    visit.get("#format").select_option("tools")
    expect(visit.get("#format-file")).to_be_visible()


def experts(visit: Visit, stub: StubServer) -> None:
    if is_narrow(visit):
        visit.choose("view", "inside")
    visit.choose("tint", "expert")
    visit.get("#heat tbody td").nth(5).click()
    expect(visit.get("#readout")).to_contain_text("Layer 0, expert 5")


# In this order; each begins where the one before has ended.
STATES: tuple[Callable[[Visit, StubServer], None], ...] = (
    empty, text, card, docked_card, inside_token, weights, wide_map, chat_empty, chat, branches, editing, streaming,
    calls, results, failed, history, renaming, compare, server, unreachable, without_key, loading, sampling, tools,
    experts,
)  # fmt: skip
EXPECTED_STATUSES = (401, 503)
