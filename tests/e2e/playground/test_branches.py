"""Branches of a chat and of a text: what the page sends for each, and that none is lost."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Locator, expect

from tests.support.playground.browser import Visit, visiting
from tests.support.playground.states import say
from tests.support.playground.stub_server import StubServer, stub_server

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def stub() -> Iterator[StubServer]:
    with stub_server() as running:
        yield running


@pytest.fixture
def visit(browser: Browser, stub: StubServer) -> Iterator[Visit]:
    stub.finish_reason, stub.failure, stub.breaks, stub.num_announced = "stop", None, False, None
    with visiting(browser, stub.url, statuses=(503,)) as page:
        page.get("#heat td").first.wait_for()
        page.choose("mode", "chat")
        yield page


def answer(visit: Visit, stub: StubServer, message: str, *tokens: str) -> None:
    stub.tokens = list(tokens)
    say(visit, message)
    visit.wait_until_finished()


def press(visit: Visit, place: int, name: str) -> None:
    """Press a button of the message at `place`."""
    visit.get("article").nth(place).get_by_role("button", name=name, exact=True).click()


def shown(visit: Visit) -> list[str]:
    return visit.get(".turn-body").all_text_contents()


def sent(stub: StubServer) -> list[str]:
    """Return the texts of the last request's messages."""
    return [message["content"] for message in stub.bodies[-1]["messages"]]


def place_of(visit: Visit, place: int) -> Locator:
    return visit.get("article").nth(place).locator(".branches span")


def test_another_answer_and_an_edited_message_keep_the_branches_before_them(visit: Visit, stub: StubServer) -> None:
    answer(visit, stub, "one", "alpha")
    answer(visit, stub, "two", "beta")
    stub.tokens = ["gamma"]
    press(visit, 1, "Answer again")  # of the first answer: what followed it stays with it
    visit.wait_until_finished()
    assert (shown(visit), sent(stub)) == (["one", "gamma"], ["one"])
    expect(place_of(visit, 1)).to_have_text("2/2")
    press(visit, 1, "Previous branch")
    assert shown(visit) == ["one", "alpha", "two", "beta"]
    expect(visit.get("article").nth(1).get_by_role("button", name="Next branch")).to_be_focused()
    stub.tokens = ["delta"]
    press(visit, 2, "Edit")
    visit.get(".editor textarea").fill("three")
    visit.page.keyboard.press("Enter")
    visit.wait_until_finished()
    assert (shown(visit), sent(stub)) == (["one", "alpha", "three", "delta"], ["one", "alpha", "three"])
    expect(place_of(visit, 2)).to_have_text("2/2")
    press(visit, 2, "Previous branch")
    assert shown(visit)[2:] == ["two", "beta"]
    press(visit, 2, "Delete")
    press(visit, 2, "Sure?")
    assert shown(visit) == ["one", "alpha", "three", "delta"]
    press(visit, 1, "Next branch")
    assert shown(visit) == ["one", "gamma"]


def test_an_edited_answer_is_a_branch_that_the_next_message_goes_on_from(visit: Visit, stub: StubServer) -> None:
    answer(visit, stub, "one", "alpha")
    num_sent = len(stub.bodies)
    press(visit, 1, "Edit")
    visit.get(".editor textarea").fill("better")
    visit.page.keyboard.press("Control+Enter")
    assert shown(visit) == ["one", "better"] and len(stub.bodies) == num_sent
    answer(visit, stub, "two", "beta")
    assert sent(stub) == ["one", "better", "two"]
    press(visit, 0, "Edit")
    visit.page.keyboard.press("Escape")
    assert shown(visit) == ["one", "better", "two", "beta"]


def test_an_answer_that_was_cut_is_continued_in_place(visit: Visit, stub: StubServer) -> None:
    answer(visit, stub, "one", "alpha")
    expect(visit.get("article").nth(1).get_by_role("button", name="Continue")).to_be_hidden()
    stub.finish_reason = "length"
    answer(visit, stub, "two", "be")
    stub.tokens, stub.finish_reason = ["ta"], "stop"
    visit.get("#format").select_option("json")
    press(visit, 3, "Continue")
    visit.wait_until_finished()
    assert "response_format" not in stub.bodies[-1], "a format describes a whole answer, not the rest of one"
    assert sent(stub) == ["one", "alpha", "two", "be"]
    assert stub.bodies[-1]["continue_final_message"] is True
    assert shown(visit)[-1] == "beta"
    expect(place_of(visit, 3)).to_have_count(0)


def test_a_failed_edit_or_answer_leaves_everything_as_it_was(visit: Visit, stub: StubServer) -> None:
    answer(visit, stub, "one", "alpha")
    stub.tokens = ["beta"]
    press(visit, 1, "Answer again")
    visit.wait_until_finished()
    press(visit, 1, "Previous branch")
    stub.failure = (503, "overloaded")
    press(visit, 1, "Answer again")
    expect(visit.get("#failure")).to_contain_text("overloaded")
    assert shown(visit) == ["one", "alpha"]
    expect(place_of(visit, 1)).to_have_text("1/2")
    press(visit, 0, "Edit")
    visit.get(".editor textarea").fill("other")
    visit.page.keyboard.press("Enter")
    expect(visit.get("#message")).to_have_value("other")
    assert shown(visit) == ["one", "alpha"]
    stub.failure, stub.tokens = None, ["gamma"]
    visit.get("#failure button").click()  # sends the edited message again
    visit.wait_until_finished()
    assert shown(visit) == ["other", "gamma"]


def test_a_stopped_answer_keeps_its_text_and_can_be_continued(visit: Visit, stub: StubServer) -> None:
    stub.tokens = ["al", "pha"]
    stub.released.clear()
    say(visit, "one")
    visit.get("article.streaming .t").first.wait_for()
    visit.page.keyboard.press("Escape")
    expect(visit.get("#summary")).to_contain_text("stopped")
    stub.released.set()
    assert shown(visit) == ["one", "al"]
    expect(visit.get("article").nth(1).get_by_role("button", name="Continue")).to_be_visible()


@pytest.mark.parametrize("num_announced", [None, 100_000], ids=["closed", "broken"])
def test_an_answer_that_breaks_off_keeps_its_text_and_can_be_tried_again_or_continued(
    visit: Visit, stub: StubServer, num_announced: int | None
) -> None:
    """`num_announced`: a stream with less is a failed read for the browser, as after the death of a real server."""
    stub.tokens, stub.breaks, stub.num_announced = ["al", "pha"], True, num_announced
    stub.released.clear()
    say(visit, "one")
    visit.get("article.streaming .t").first.wait_for()
    stub.released.set()
    expect(visit.get("#failure")).to_contain_text("The connection was cut before the text was complete.")
    assert shown(visit) == ["one", "al"]
    expect(visit.get("article .figures").last).to_contain_text(" · stopped")
    visit.problems[:] = [problem for problem in visit.problems if "ERR_CONTENT_LENGTH_MISMATCH" not in problem]
    stub.tokens, stub.breaks, stub.num_announced = ["beta"], False, None
    visit.get("#failure button").click()
    visit.wait_until_finished()
    assert (shown(visit), sent(stub)) == (["one", "beta"], ["one"])
    stub.tokens = ["pha"]
    press(visit, 1, "Previous branch")
    press(visit, 1, "Continue")
    visit.wait_until_finished()
    assert (shown(visit), sent(stub)) == (["one", "alpha"], ["one", "al"])


def test_a_text_that_breaks_off_says_so_and_goes_on(visit: Visit, stub: StubServer) -> None:
    visit.choose("mode", "completion")
    stub.tokens, stub.breaks, stub.num_announced = [" a", " b"], True, 100_000
    visit.get("#prompt").fill("Say")
    stub.released.clear()
    visit.get("#run").click()
    visit.get("#continuation .t").first.wait_for()
    stub.released.set()
    expect(visit.get("#failure")).to_contain_text("The connection was cut")
    assert visit.text == " a"
    visit.problems[:] = [problem for problem in visit.problems if "ERR_CONTENT_LENGTH_MISMATCH" not in problem]
    stub.tokens, stub.breaks, stub.num_announced = [" b"], False, None
    visit.get("#again").click()
    visit.wait_until_finished()
    assert stub.bodies[-1]["prompt"] == "Say a"
    expect(visit.get("#failure")).to_be_hidden()


def test_a_message_to_a_server_that_died_is_kept_and_sent_when_it_is_back(visit: Visit, stub: StubServer) -> None:
    answer(visit, stub, "one", "alpha")
    stub.stop()
    say(visit, "two")
    expect(visit.get("#failure")).to_contain_text("cannot be reached")
    assert shown(visit) == ["one", "alpha"]
    expect(visit.get("#message")).to_have_value("two")
    expect(visit.get("#health")).to_have_attribute("data-phase", "unreachable")
    stub.start()
    stub.tokens = ["beta"]
    visit.get("#failure button").click()
    visit.wait_until_finished()
    assert (shown(visit), sent(stub)) == (["one", "alpha", "two", "beta"], ["one", "alpha", "two"])
    expect(visit.get("#health")).to_have_attribute("data-phase", "ready")
    visit.problems[:] = [problem for problem in visit.problems if "ERR_" not in problem]


def test_a_text_goes_on_with_an_alternative_and_the_one_before_can_be_opened(visit: Visit, stub: StubServer) -> None:
    visit.choose("mode", "completion")
    stub.tokens = [" a", " b", " c"]
    visit.write("Say")
    visit.get("#continuation .t").nth(1).click()
    visit.get("#gates .gate-branches button").first.click()
    visit.wait_until_finished()
    assert stub.bodies[-1]["prompt"] == "Say a other"
    expect(visit.get("#versions span")).to_have_text("2/2")
    visit.get("#versions").get_by_role("button", name="Previous text").click()
    expect(visit.get("#prompt")).to_have_value("Say")
    assert visit.text == " a b c"


def test_an_answer_goes_on_with_an_alternative_as_another_branch(visit: Visit, stub: StubServer) -> None:
    answer(visit, stub, "one", "alpha", " beta", " gamma")
    stub.tokens = [" end"]
    visit.get("article.assistant .t").nth(1).click()
    visit.get("#gates .gate-branches button").first.click()
    visit.wait_until_finished()
    assert sent(stub) == ["one", "alpha other"]
    assert stub.bodies[-1]["continue_final_message"] is True
    assert shown(visit) == ["one", "alpha other end"]
    expect(place_of(visit, 1)).to_have_text("2/2")
