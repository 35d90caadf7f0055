"""Links: text, seed, sampling and experts in the address's fragment; opened, they send nothing by themselves."""

import json
from urllib.parse import quote, unquote

import pytest
from playwright.sync_api import Browser, expect

from tests.support.playground.browser import Visit, visiting
from tests.support.playground.states import say
from tests.support.playground.stub_server import StubServer, stub_server

pytestmark = pytest.mark.browser
KEY = "secret-key"


def fragment(mode: str, text: object) -> str:
    return "#" + quote(json.dumps({"mode": mode, "text": text}))


LINK = {"innerHTML": "<a id=injected href='https://other.example'>Sign in</a>"}
DAMAGED = [
    "#chapter",
    "#%",
    "#%7B%7D",
    "#null",
    "#" + quote('{"mode": "constructor"}'),
    "#" + quote('{"mode": "chat"}'),
    fragment("completion", {"versions": [{"prompt": "a", "text": LINK}], "at": 0}),
    fragment("completion", {"versions": [{"prompt": LINK, "text": "a"}], "at": 0}),
]


def link_of(visit: Visit) -> str:
    """Copy the link of what is open; return it."""
    visit.get("#copy-link").click()
    expect(visit.get("#toast")).to_have_text("Copied as a link")
    link: str = visit.page.evaluate("navigator.clipboard.readText()")
    assert KEY not in link
    return link


def ready(visit: Visit) -> None:
    visit.get("#heat td").first.wait_for(state="attached")


def opened(visit: Visit, link: str) -> None:
    """Open a link in the tab, as its address does."""
    visit.page.goto("about:blank")
    visit.page.goto(link)
    ready(visit)
    visit.page.wait_for_function("location.hash === ''")


def resend(visit: Visit, stub: StubServer) -> dict[str, object]:
    """Send what is open; return the body of the request."""
    visit.get("#run").click()
    visit.wait_until_finished()
    return stub.bodies[-1]


def test_a_link_to_a_text_opens_it_and_its_request_and_sends_nothing(browser: Browser) -> None:
    with stub_server() as stub, visiting(browser, stub.url) as visit:
        ready(visit)
        visit.page.evaluate(f"sessionStorage.setItem('smoe-api-key', '{KEY}')")
        visit.get(".slider:has(#temperature) input[type=number]").fill("0.3")
        visit.get(".slider:has(#max_tokens) input[type=number]").fill("1500")
        visit.set_slider("#experts_per_token", 4)
        visit.get("#format").select_option("regex")
        visit.get("#format-text").fill("[a-z]+")
        visit.write("Été & co:")
        sent = stub.bodies[-1]
        link = link_of(visit)
        with visiting(browser, stub.url) as other:
            opened(other, link)
            expect(other.get("#prompt")).to_have_value("Été & co:")
            expect(other.get("#continuation")).to_have_text("An answer")
            assert stub.bodies[-1] is sent
            assert resend(other, stub) == sent | {"seed": 7}
            other.get("#prompt").fill("Another text")
            other.page.evaluate("link => location.assign(link)", link)  # in the open tab: only the fragment changes
            expect(other.get("#prompt")).to_have_value("Été & co:")
            expect(other.get("#experts_per_token")).to_have_value("4")
        visit.get("#prompt").fill("A prompt that nobody has sent")
        with visiting(browser, stub.url) as other:
            opened(other, link_of(visit))
            expect(other.get("#prompt")).to_have_value("A prompt that nobody has sent")
            expect(other.get("#continuation")).to_be_empty()


def test_a_link_to_a_chat_has_its_branches_and_one_to_a_comparison_its_columns(browser: Browser) -> None:
    with stub_server() as stub, visiting(browser, stub.url) as visit:
        ready(visit)
        visit.choose("mode", "chat")
        visit.get("#copy-link").click()
        expect(visit.get("#toast")).to_have_text("Enter a text first")
        visit.get("#chat summary").click()
        visit.get("#system").fill("Be short.")
        say(visit, "Hello")
        visit.wait_until_finished()
        visit.get("#again").click()
        visit.wait_until_finished()
        visit.get("#heat tbody td").first.click()
        visit.get("#readout .switch-expert").click()  # answers once more
        visit.wait_until_finished()
        chat = link_of(visit)
        visit.choose("mode", "compare")
        visit.get("#compare-prompt").fill("Compare this")
        visit.get(".column .remove").last.click()
        visit.get(".column select").first.select_option("3")
        visit.get(".column input[type=text]").first.fill("1, 2")
        comparison = link_of(visit)
        with visiting(browser, stub.url) as other:
            opened(other, chat)
            expect(other.get("article")).to_have_count(2)
            expect(other.get("article.assistant .branches")).to_contain_text("3/3")
            expect(other.get("#system")).to_be_visible()
            expect(other.get("#heat .off")).to_have_count(1)
            say(other, "And more")
            other.wait_until_finished()
            assert [message["content"] for message in stub.bodies[-1]["messages"]] == [
                "Be short.",
                "Hello",
                "An answer",
                "And more",
            ]
            assert stub.bodies[-1]["expert_mask"][0] == [False] + [True] * 7
            opened(other, comparison)
            expect(other.get(".column")).to_have_count(2)
            resend(other, stub)
            body = next(body for body in stub.bodies[-2:] if body["experts_per_token"] == 3)
            assert body["prompt"] == "Compare this"
            assert body["expert_mask"][0] == [True, False, False] + [True] * 5


def test_a_link_has_the_seed_of_its_text_after_another_tab_and_after_a_reload(browser: Browser) -> None:
    def seed_of(link: str) -> object:
        return json.loads(unquote(link.partition("#")[2]))["seed"]

    with stub_server() as stub, visiting(browser, stub.url) as visit:
        ready(visit)
        visit.write("A prompt")
        visit.choose("mode", "chat")
        say(visit, "Hello")
        visit.wait_until_finished()
        for mode in ("completion", "chat"):
            visit.choose("mode", mode)
            assert seed_of(link_of(visit)) == "7", mode
        visit.get("#history-button").click()  # stores both
        expect(visit.get("#history-list li")).to_have_count(2)
        visit.page.reload()
        for mode in ("completion", "chat"):
            visit.choose("mode", mode)
            ready(visit)
            visit.wait_until_finished()
            assert seed_of(link_of(visit)) == "7", mode


def test_a_damaged_link_says_so_and_changes_nothing(browser: Browser) -> None:
    with stub_server() as stub, visiting(browser, stub.url) as visit:
        ready(visit)
        visit.get("#prompt").fill("My text")
        for damaged in DAMAGED:
            visit.page.evaluate(
                "hash => { document.getElementById('toast').replaceChildren(); location.hash = hash; }", damaged
            )
            expect(visit.get("#toast")).to_have_text("This link is damaged")
            assert visit.page.evaluate("location.hash") == ""
        expect(visit.get("#prompt")).to_have_value("My text")
        expect(visit.get("#completion")).to_be_visible()
        expect(visit.get("#injected")).to_have_count(0)
        assert not stub.bodies


def test_a_link_whose_open_branch_is_none_opens_the_first_one(browser: Browser) -> None:
    message = {"role": "user", "text": "Hello", "chosen": 0, "children": []}
    tree = {"role": "root", "text": "", "chosen": "length", "children": [message]}
    with stub_server() as stub, visiting(browser, stub.url) as visit:
        ready(visit)
        opened(visit, f"{stub.url}/{fragment('chat', {'tree': tree})}")
        expect(visit.get(".turn-body")).to_have_text("Hello")
