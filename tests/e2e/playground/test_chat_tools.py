"""Tools in chats: calls as cards, results that the user gives, and what the page sends for them."""

import json
from threading import Event

import pytest
from playwright.sync_api import Browser, expect

from tests.e2e.playground.test_history import until_stored
from tests.support.playground.browser import Visit, visiting
from tests.support.playground.states import say
from tests.support.playground.stub_server import StubServer, stub_server
from tests.support.servers.running import RunningServer

pytestmark = pytest.mark.browser
FUNCTIONS = [{"name": "weather", "parameters": {"type": "object"}}, {"name": "clock"}]
TOOLS = [{"type": "function", "function": function} for function in FUNCTIONS]
CALLS = [("weather", '{"city": "Oslo"}'), ("clock", "{}")]
SENT_CALLS = [
    {"id": f"call{index:05}", "type": "function", "function": {"name": name, "arguments": arguments}}
    for index, (name, arguments) in enumerate(CALLS)
]
CALLED = {"role": "assistant", "content": None, "tool_calls": SENT_CALLS}


def offer(visit: Visit, kind: str, tools: object) -> None:
    """Open a chat whose answers may (`tools`) or must (`call`) call these tools."""
    visit.get("#heat td").first.wait_for(state="attached")
    visit.choose("mode", "chat")
    visit.get("#format").select_option(kind)
    visit.get("#format-text").fill(json.dumps(tools))


def call(visit: Visit, stub: StubServer) -> None:
    """Ask for the weather; the answer consists of the calls."""
    stub.tokens, stub.calls, stub.finish_reason = [], CALLS, "tool_calls"
    say(visit, "How is it in Oslo?")
    visit.wait_until_finished()
    stub.tokens, stub.calls, stub.finish_reason = ["It rains."], [], "stop"


def test_calls_are_cards_and_their_results_are_sent_on(browser: Browser) -> None:
    with stub_server() as stub, visiting(browser, stub.url, statuses=(503,)) as visit:
        offer(visit, "tools", FUNCTIONS)
        call(visit, stub)
        assert stub.bodies[-1]["tools"] == TOOLS
        assert "tool_choice" not in stub.bodies[-1]
        cards = visit.get("article.assistant .code")
        assert cards.all_inner_texts() == ['weather\nCopy\n{\n  "city": "Oslo"\n}', "clock\nCopy\n{}"]
        for name in ("Continue", "Tokens"):
            expect(visit.get("article.assistant").get_by_role("button", name=name)).to_be_hidden()
        visit.get(".results textarea").first.fill("2 degrees\nrain")
        stub.failure = (503, "overloaded")
        visit.get(".results button").click()
        expect(visit.get("#failure")).to_contain_text("overloaded")
        expect(visit.get("article")).to_have_count(2)
        expect(visit.get(".results textarea").first).to_have_value("2 degrees\nrain")
        stub.failure = None
        visit.get(".results textarea").last.fill("noon")
        visit.page.keyboard.press("Escape")
        expect(visit.get("#message")).to_be_focused()
        visit.get(".results textarea").last.focus()
        visit.page.keyboard.press("Control+Enter")
        visit.wait_until_finished()
        expect(visit.get("#message")).to_be_focused()
        question = {"role": "user", "content": "How is it in Oslo?"}
        results = [
            {"role": "tool", "tool_call_id": "call00000", "content": "2 degrees\nrain"},
            {"role": "tool", "tool_call_id": "call00001", "content": "noon"},
        ]
        assert stub.bodies[-1]["messages"] == [question, CALLED, *results]
        assert visit.get(".turn-body").all_inner_texts()[2:] == ["2 degrees\nrain", "noon", "It rains."]
        expect(visit.get(".results")).to_be_hidden()
        until_stored(visit, "It rains.")
        visit.page.reload()
        expect(cards).to_have_count(2)
        visit.get("#again").click()
        visit.wait_until_finished()
        assert stub.bodies[-1]["tools"] == TOOLS
        assert stub.bodies[-1]["messages"] == [question, CALLED, *results]


def test_a_call_that_was_cut_asks_for_no_result(browser: Browser) -> None:
    with stub_server() as stub, visiting(browser, stub.url) as visit:
        offer(visit, "tools", FUNCTIONS)
        stub.tokens, stub.calls, stub.finish_reason = [], [*CALLS, ("clock", '{"zone": "Eu')], "length"
        say(visit, "How is it in Oslo?")
        visit.wait_until_finished()
        expect(visit.get("article.assistant .code")).to_have_count(3)
        expect(visit.get("article.assistant .calls")).to_contain_text("The call is incomplete: press Again.")
        expect(visit.get(".results")).to_have_count(0)


def test_arguments_get_their_colours_when_the_answer_is_complete(browser: Browser) -> None:
    with stub_server() as stub, visiting(browser, stub.url) as visit:
        visit.get("#heat td").first.wait_for()
        visit.choose("mode", "chat")
        stub.tokens, stub.calls, stub.finish_reason = [], CALLS, "tool_calls"
        stub.holds[0] = Event()
        say(visit, "How is it in Oslo?")
        code = visit.get("article.assistant .calls pre").first
        expect(code).to_contain_text("Oslo")
        assert code.locator(".string").count() == 0
        stub.holds[0].set()
        expect(code.locator(".string").first).to_be_visible()


def test_a_deleted_result_can_be_given_again_and_an_edited_answer_keeps_its_calls(browser: Browser) -> None:
    with stub_server() as stub, visiting(browser, stub.url) as visit:
        offer(visit, "tools", TOOLS)
        call(visit, stub)
        visit.get(".results button").click()
        visit.wait_until_finished()
        for label in ("Delete", "Sure?"):
            visit.get("article.tool").first.get_by_role("button", name=label).click()
        expect(visit.get("article")).to_have_count(2)
        visit.get(".results textarea").first.fill("snow")
        visit.get(".results button").click()
        visit.wait_until_finished()
        assert [message["content"] for message in stub.bodies[-1]["messages"]][2:] == ["snow", ""]
        visit.get("article.assistant").first.get_by_role("button", name="Edit").click()
        visit.get(".editor textarea").fill("Let me see.")
        visit.page.keyboard.press("Control+Enter")
        visit.get(".results button").click()
        visit.wait_until_finished()
        assert stub.bodies[-1]["messages"][1] == CALLED | {"content": "Let me see."}


def test_answers_that_must_be_calls_end_with_a_text_after_the_results(browser: Browser) -> None:
    with stub_server() as stub, visiting(browser, stub.url) as visit:
        offer(visit, "call", FUNCTIONS)
        visit.get("#details").uncheck()
        call(visit, stub)
        assert stub.bodies[-1]["tool_choice"] == "required"
        visit.get(".results button").click()
        visit.wait_until_finished()
        assert (stub.bodies[-1]["tool_choice"], stub.bodies[-1]["tools"]) == ("none", TOOLS)
        visit.choose("mode", "completion")
        visit.write("A prompt")
        assert not {"tools", "tool_choice"} & stub.bodies[-1].keys()


def test_a_list_that_is_none_is_not_sent_and_a_file_takes_its_place(browser: Browser) -> None:
    with stub_server() as stub, visiting(browser, stub.url) as visit:
        offer(visit, "tools", [{"description": "no name"}])
        for wrong, said in (
            (None, "Tool 1 has no name."),
            ("[", "JSON"),
            ("3", "Tool 1 has no name."),
            (" ", "Describe"),
        ):
            if wrong:
                visit.get("#format-text").fill(wrong)
            say(visit, "Hello")
            expect(visit.get("#format-text")).to_be_focused()
            assert said in visit.get("#format-text").evaluate("field => field.validationMessage")
        assert not stub.bodies
        content = json.dumps(TOOLS).encode()
        file = {"name": "tools.json", "mimeType": "application/json", "buffer": content}
        visit.get("#format-file").set_input_files(file)  # type: ignore[arg-type]
        expect(visit.get("#format-text")).to_have_value(content.decode())
        visit.get("#format").select_option("call")  # keeps the list
        say(visit, "Hello")
        visit.wait_until_finished()
        assert stub.bodies[-1]["tools"] == TOOLS


def test_the_model_calls_a_tool_and_answers_with_its_result(visit: Visit, server: RunningServer) -> None:
    clock = {"name": "time", "parameters": {"type": "object", "additionalProperties": False}}
    offer(visit, "call", [clock])
    visit.set_slider("#max_tokens", 64)
    say(visit, "What time is it?")
    visit.wait_until_finished()
    expect(visit.get("article.assistant .code").first).to_contain_text("time")
    expect(visit.get("article.assistant .code pre").first).to_have_text("{}")
    for field in visit.get(".results textarea").all():
        field.fill("noon")
    visit.get(".results button").click()
    visit.wait_until_finished()
    expect(visit.get("#failure")).to_be_hidden()
    expect(visit.get("article.assistant")).to_have_count(2)
    assert visit.get("article.assistant .turn-body").last.inner_text().strip()
