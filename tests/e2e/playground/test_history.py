"""The history of texts and chats: kept in the browser over a reload, listed, renamed, deleted, exported, imported."""

import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.support.playground.browser import Visit, visiting
from tests.support.playground.states import say
from tests.support.playground.stub_server import StubServer, stub_server

pytestmark = pytest.mark.browser
STORED = """async () => {
  const databases = await indexedDB.databases(); // opening one that is not there would make it
  if (!databases.some(({ name, version }) => name === "smoe" && version === 1)) return [];
  return new Promise((resolve) => {
    const request = indexedDB.open("smoe");
    request.onsuccess = () => {
      const all = request.result.transaction("entries").objectStore("entries").getAll();
      all.onsuccess = () => { request.result.close(); resolve(all.result); };
    };
  });
}"""


@pytest.fixture(scope="module")
def stub() -> Iterator[StubServer]:
    with stub_server() as running:
        yield running


@pytest.fixture
def visit(browser: Browser, stub: StubServer) -> Iterator[Visit]:
    stub.tokens, stub.finish_reason = ["alpha", " beta"], "stop"
    with visiting(browser, stub.url) as page:
        page.get("#heat td").first.wait_for()
        page.choose("mode", "chat")
        yield page


def talk(visit: Visit, message: str) -> None:
    """Say something and wait for the answer. It is stored soon, and at the latest when the history is opened."""
    say(visit, message)
    visit.wait_until_finished()


def until_stored(visit: Visit, text: str) -> None:
    deadline = time.monotonic() + 60
    while text not in json.dumps(stored(visit)):
        assert time.monotonic() < deadline
        visit.page.wait_for_timeout(50)


def stored(visit: Visit) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = visit.page.evaluate(STORED)
    return entries


def open_history(visit: Visit) -> None:
    visit.get("#history-button").click()
    visit.get("#history-panel").wait_for()


def test_a_reload_opens_the_same_branch_and_text_again(visit: Visit, stub: StubServer) -> None:
    talk(visit, "one")
    stub.tokens = ["gamma"]
    visit.get("#again").click()
    visit.wait_until_finished()
    visit.get("article.assistant").get_by_role("button", name="Previous branch").click()
    visit.choose("mode", "completion")
    stub.tokens = ["delta"]
    visit.write("A prompt")
    until_stored(visit, "delta")
    visit.page.reload()
    expect(visit.get("#prompt")).to_have_value("A prompt")
    expect(visit.get("#continuation")).to_have_text("delta")
    visit.choose("mode", "chat")
    expect(visit.get("article.assistant .turn-body")).to_have_text("alpha beta")
    expect(visit.get("article.assistant .branches span")).to_have_text("1/2")
    talk(visit, "two")
    assert [message["content"] for message in stub.bodies[-1]["messages"]] == ["one", "alpha beta", "two"]


def test_an_answer_that_a_reload_cuts_is_kept_and_goes_on(visit: Visit, stub: StubServer) -> None:
    first, last = threading.Event(), threading.Event()
    stub.holds = {0: first, 2: last}
    say(visit, "one")
    until_stored(visit, "one")  # the message, before the answer begins
    first.set()
    until_stored(visit, "alpha beta")
    stub.tokens, stub.holds = [" gamma"], {0: last}
    visit.page.reload()
    expect(visit.get(".turn-body")).to_have_text(["one", "alpha beta"])
    expect(visit.get("#stop")).to_be_visible()
    last.set()
    visit.wait_until_finished()
    expect(visit.get(".turn-body")).to_have_text(["one", "alpha beta gamma"])
    figures = visit.get("article").nth(1).locator(".figures")
    expect(figures).to_have_text(re.compile(r" 2 tokens · .* context · stopped, then .* tokens · .* · complete$"))
    assert [message["content"] for message in stub.bodies[-1]["messages"]] == ["one", "alpha beta"]
    assert stub.bodies[-1]["continue_final_message"] is True
    never = threading.Event()
    stub.holds = {0: never}
    say(visit, "two")
    until_stored(visit, "two")
    stub.holds = {}
    visit.page.reload()  # before the first token: the message is answered again
    visit.wait_until_finished()
    never.set()
    expect(visit.get(".turn-body")).to_have_text(["one", "alpha beta gamma", "two", "gamma"])
    assert [message["content"] for message in stub.bodies[-1]["messages"]] == ["one", "alpha beta gamma", "two"]
    expect(visit.get("article").nth(3).locator(".branches")).to_be_hidden()


def test_a_text_that_a_reload_cuts_goes_on_and_what_is_typed_stops_that(visit: Visit, stub: StubServer) -> None:
    visit.choose("mode", "completion")
    last = threading.Event()
    stub.holds = {2: last}
    visit.get("#prompt").fill("A prompt: ")
    visit.page.keyboard.press("Control+Enter")
    until_stored(visit, "alpha beta")
    stub.tokens, stub.holds = [" gamma"], {}
    with visit.page.expect_request("**/v1/completions"):  # until then the page looks as if the text were complete
        visit.page.reload()
    visit.wait_until_finished()
    last.set()
    assert stub.bodies[-1]["prompt"] == "A prompt: alpha beta"
    expect(visit.get("#continuation")).to_have_text(" gamma")
    expect(visit.get("#versions span")).to_have_text("2/2")
    num_sent = len(stub.bodies)
    visit.page.reload()
    expect(visit.get("#prompt")).to_have_value("A prompt: alpha beta")
    expect(visit.get("#health")).to_have_attribute("data-phase", "ready")
    expect(visit.get("#run")).to_be_visible()
    assert len(stub.bodies) == num_sent, "a text that was complete is not written again"


def test_what_a_reload_cuts_before_its_first_token_is_written_anew(visit: Visit, stub: StubServer) -> None:
    talk(visit, "one")
    never = threading.Event()
    stub.holds = {0: never}
    visit.get("#again").click()
    until_stored(visit, '"text": ""')
    stub.tokens, stub.holds = ["gamma"], {}
    visit.page.reload()
    visit.wait_until_finished()
    expect(visit.get(".turn-body")).to_have_text(["one", "gamma"])
    assert [message["content"] for message in stub.bodies[-1]["messages"]] == ["one"]
    visit.get("article.assistant").get_by_role("button", name="Previous branch").click()
    expect(visit.get(".turn-body")).to_have_text(["one", "alpha beta"])
    visit.choose("mode", "completion")
    visit.write("A prompt")
    stub.holds = {0: never}
    visit.get("#prompt").fill("Another")
    visit.page.keyboard.press("Control+Enter")
    until_stored(visit, "Another")
    stub.tokens, stub.holds = ["delta"], {}
    visit.page.reload()
    visit.wait_until_finished()
    never.set()
    assert stub.bodies[-1]["prompt"] == "Another"
    expect(visit.get("#prompt")).to_have_value("Another")


def test_a_second_reload_before_the_texts_are_open_loses_nothing(visit: Visit, stub: StubServer) -> None:
    talk(visit, "one")
    until_stored(visit, "alpha beta")
    slow_once = (
        "sessionStorage.slow ??= (indexedDB.open = () => new EventTarget()) && 'was'"  # a request without an answer
    )
    visit.page.add_init_script(slow_once)
    visit.page.reload()
    expect(visit.get("#health")).to_have_attribute("data-phase", "ready")
    expect(visit.get(".turn-body")).to_have_count(0)
    visit.page.reload()
    expect(visit.get(".turn-body")).to_have_text(["one", "alpha beta"])


def test_an_answer_of_a_tab_that_was_closed_is_marked_and_can_be_continued(visit: Visit, stub: StubServer) -> None:
    last = threading.Event()
    stub.holds = {2: last}
    say(visit, "one")
    until_stored(visit, "alpha beta")
    context = visit.page.context
    other = context.new_page()
    visit.page.close()
    last.set()
    stub.holds = {}
    other.goto(stub.url)
    visit.page = other
    open_history(visit)
    visit.get("#history-list .entry").click()
    expect(visit.get(".turn-body")).to_have_text(["one", "alpha beta"])
    expect(visit.get("article").nth(1).get_by_role("button", name="Continue")).to_be_visible()
    expect(visit.get("article").nth(1).locator(".figures")).to_have_text(
        re.compile(r" 2 tokens · .* context · stopped$")
    )


def test_a_reload_keeps_the_controls_and_what_was_not_sent(visit: Visit, stub: StubServer) -> None:
    visit.get("#heat tbody td").nth(5).click()
    visit.get(".switch-expert").click()
    visit.set_slider("#temperature", 1.3)
    visit.get("#format").select_option("regex")
    visit.get("#format-text").fill("[a-z]+")
    visit.get("#message").fill("not sent")
    visit.get("#chat summary").click()
    visit.get("#system").fill("Be brief.")
    visit.choose("mode", "completion")
    visit.get("#prompt").fill("A prompt, not sent")
    visit.choose("mode", "compare")
    visit.get("#add-column").click()
    visit.get("#compare-prompt").fill("Another")
    num_sent = len(stub.bodies)
    visit.page.reload()
    expect(visit.get("#compare-prompt")).to_have_value("Another")
    expect(visit.get(".column")).to_have_count(4)
    expect(visit.get("#prompt")).to_have_value("A prompt, not sent")
    expect(visit.get("#message")).to_have_value("not sent")
    expect(visit.get("#system")).to_have_value("Be brief.")
    expect(visit.get("#heat tbody td").nth(5)).to_have_class(re.compile("off"))
    assert len(stub.bodies) == num_sent
    visit.choose("mode", "chat")
    expect(visit.get("#system")).to_be_visible()
    visit.page.keyboard.press("Enter")
    visit.wait_until_finished()
    body = stub.bodies[-1]
    assert [message["content"] for message in body["messages"]] == ["Be brief.", "not sent"]
    assert body["temperature"] == 1.3 and body["structured_outputs"] == {"regex": "[a-z]+"}
    assert body["expert_mask"][0][5] is False


def test_each_answer_keeps_its_figures_and_says_how_it_ended(visit: Visit, stub: StubServer) -> None:
    figures = visit.get("article.assistant .figures")
    for message, reason, ending in (("one", "stop", "complete"), ("two", "length", "length limit")):
        stub.finish_reason = reason
        talk(visit, message)
        expect(figures.last).to_have_text(re.compile(rf"^\d+ m?s first token · .*3 tokens · .* context · {ending}$"))
    stub.finish_reason = "stop"
    visit.get("article").last.get_by_role("button", name="Continue").click()
    visit.wait_until_finished()
    expect(figures.last).to_have_text(re.compile(r" context · length limit, then .*3 tokens · .* · complete$"))
    shown = figures.all_inner_texts()
    visit.choose("mode", "completion")
    visit.write("A prompt")
    visit.write("Another prompt")
    visit.get("#versions").get_by_role("button", name="Previous text").click()
    line = re.compile(r"first token.*3 tokens5\.0 % of 2,048 contextcompleteseed 7$")  # its parts, each in a box
    expect(visit.get("#summary")).to_have_text(line)
    until_stored(visit, "Another prompt")
    until_stored(visit, ", then ")
    visit.get("#history-button").click()  # stores what is left
    expect(visit.get("#history-list li")).to_have_count(2)
    visit.page.reload()
    expect(visit.get("#summary")).to_have_text(line)
    visit.choose("mode", "chat")
    expect(figures).to_have_text(shown)
    expect(visit.get("#summary")).to_have_text(line)
    visit.choose("mode", "completion")
    expect(visit.get("#summary")).to_have_text(line)


def test_entries_are_found_renamed_and_deleted(visit: Visit) -> None:
    talk(visit, "about houses")
    open_history(visit)
    visit.get("#history-new").click()
    expect(visit.get("article")).to_have_count(0)
    talk(visit, "about trees")
    open_history(visit)
    expect(visit.get("#history-list .entry span")).to_have_text(["about trees", "about houses"])  # the newest first
    visit.get("#history-search").fill("assistant")  # a word of the stored form, not of a text
    expect(visit.get("#history-empty")).to_have_text("Nothing found.")
    visit.get("#history-search").fill("HOUSES")
    expect(visit.get("#history-list li")).to_have_count(1)
    visit.get("#history-list").get_by_role("button", name="Rename").click()
    expect(visit.get("#history-list input")).to_be_focused()
    visit.get("#history-list input").fill("")
    visit.page.keyboard.type("Architecture")
    visit.page.keyboard.press("Enter")
    visit.get("#history-search").fill("")
    expect(visit.get("#history-list .entry span")).to_have_text(["about trees", "Architecture"])
    visit.get("#history-list").get_by_text("Architecture").click()
    expect(visit.get(".turn-body").first).to_have_text("about houses")
    open_history(visit)
    for label in ("Delete", "Sure?"):  # the open one
        visit.get("#history-list li:has([aria-current=true])").get_by_role("button", name=label).click()
    expect(visit.get("#history-list li")).to_have_count(1)
    assert [entry["name"] for entry in stored(visit)] == ["about trees"]
    visit.page.keyboard.press("Escape")
    expect(visit.get("article")).to_have_count(0)


def test_an_export_is_imported_again_and_a_damaged_file_is_refused(visit: Visit, tmp_path: Path) -> None:
    talk(visit, "one")
    open_history(visit)
    with visit.page.expect_download() as download:
        visit.get("#history-export").click()
    file = tmp_path / "export.json"
    download.value.save_as(file)
    before = stored(visit)
    assert len(before) == 1
    assert json.loads(file.read_text())["entries"] == before
    for label in ("Delete", "Sure?"):
        visit.get("#history-list li").get_by_role("button", name=label).click()
    expect(visit.get("#history-empty")).to_have_text("Texts and chats appear here.")
    for said in ("1 imported.", "0 imported."):
        visit.get("#history-file").set_input_files(file)
        expect(visit.get("#history-fault")).to_have_text(said)
        assert stored(visit) == before
    damaged = {"format": "smoe-history", "version": 1, "entries": [*before, {**before[0], "tree": {"role": "root"}}]}
    for content, said in (
        ("{", "The file is not JSON."),
        ("[1]", "The file is not an export of this page."),
        (json.dumps(damaged), "Entry 2 of the file is damaged; nothing was imported."),
    ):
        file.write_text(content)
        visit.get("#history-file").set_input_files(file)
        expect(visit.get("#history-fault")).to_have_text(said)
    assert stored(visit) == before


def test_a_text_that_is_being_written_is_not_left(visit: Visit, stub: StubServer) -> None:
    talk(visit, "one")
    stub.released.clear()
    say(visit, "two")
    visit.get("article.streaming .t").first.wait_for()
    open_history(visit)
    visit.get("#history-new").click()
    expect(visit.get("#history-fault")).to_contain_text("Stop it first")
    expect(visit.get("article")).to_have_count(4)
    stub.released.set()
    visit.wait_until_finished()


def test_a_browser_that_keeps_nothing_says_so_and_the_page_works(browser: Browser, stub: StubServer) -> None:
    with visiting(browser, "about:blank") as visit:
        visit.origin = stub.url
        visit.page.add_init_script("indexedDB.open = () => { throw new DOMException('no storage', 'SecurityError') }")
        visit.page.goto(stub.url)
        visit.problems.clear()
        visit.get("#heat td").first.wait_for()
        visit.write("A prompt")
        open_history(visit)
        expect(visit.get("#history-fault")).to_have_text("This browser keeps no texts: no storage")
