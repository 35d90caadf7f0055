"""Answer formats, presets, the composer, text files, the legend of the experts' colours, and the card that docks."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.support.playground.browser import PHONE, Visit, visiting
from tests.support.playground.states import say
from tests.support.playground.stub_server import StubServer, stub_server

pytestmark = pytest.mark.browser
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}}
FORMATS: list[tuple[str, str, dict[str, object]]] = [  # format, its text, the request's fields
    ("json", "", {"response_format": {"type": "json_object"}}),
    ("choice", "yes\nno\n", {"structured_outputs": {"choice": ["yes", "no"]}}),
    ("regex", "[a-z]+", {"structured_outputs": {"regex": "[a-z]+"}}),
    (
        "schema",
        '{"type": "object", "properties": {"n": {"type": "integer"}}}',
        {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}},
    ),
]
FIELDS = {"response_format", "structured_outputs"}
DROP = """([selector, name, content]) => {
  const data = new DataTransfer();
  data.items.add(new File([content], name));
  const target = document.querySelector(selector);
  const over = new DragEvent("dragover", { dataTransfer: data, bubbles: true, cancelable: true });
  target.dispatchEvent(over);
  target.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
  return over.defaultPrevented;
}"""


def ready(visit: Visit) -> None:
    visit.get("#heat td").first.wait_for(state="attached")


def test_an_answer_has_the_chosen_format_and_an_invalid_one_is_not_sent(browser: Browser) -> None:
    with stub_server() as stub, visiting(browser, stub.url) as visit:
        ready(visit)
        visit.write("A prompt")
        assert not FIELDS & stub.bodies[-1].keys()
        expect(visit.get("#format-text")).to_be_hidden()
        visit.choose("mode", "chat")
        for name, text, fields in FORMATS:
            visit.get("#format").select_option(name)
            if text:
                visit.get("#format-text").fill(text)
            say(visit, "Go on")
            visit.wait_until_finished()
            assert {name: value for name, value in stub.bodies[-1].items() if name in FIELDS} == fields
            expect(visit.get("#summary")).to_contain_text("in the format")
        num_sent = len(stub.bodies)
        visit.page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
        for wrong in ('{"type": ', " "):
            visit.choose("view", "sampling")
            visit.get("#format-text").fill(wrong)
            visit.choose("view", "write")
            say(visit, "Go on")
            expect(visit.get("#format-text")).to_be_focused()  # the part of the sampling is open
            assert visit.get("#format-text").evaluate("field => field.validationMessage")
        assert len(stub.bodies) == num_sent


def test_a_preset_sets_the_sampling_and_leaves_length_and_experts(browser: Browser) -> None:
    with stub_server() as stub, visiting(browser, stub.url) as visit:
        ready(visit)
        visit.set_slider("#experts_per_token", 3)
        visit.set_slider("#max_tokens", 64)
        for name, fields in (
            ("Varied", {"temperature": 1.2, "top_p": 0.95}),
            ("Greedy", {"temperature": 0}),
            ("Default", {}),
        ):
            visit.get(".presets").get_by_role("button", name=name).click()
            visit.write("A prompt")
            sent = {key: value for key, value in stub.bodies[-1].items() if key in ("temperature", "top_p")}
            assert sent == fields
            assert (stub.bodies[-1]["experts_per_token"], stub.bodies[-1]["max_tokens"]) == (3, 64)
        expect(visit.get(".slider:has(#temperature) input[type=number]")).to_have_attribute("placeholder", "0.7")


def test_the_composer_is_one_box_and_arrow_up_edits_the_last_message(browser: Browser) -> None:
    with stub_server() as stub, visiting(browser, stub.url) as visit:
        ready(visit)
        visit.choose("mode", "chat")
        box, field, run = (visit.get(selector).bounding_box() for selector in (".box", "#message", "#run"))
        assert box and field and run
        assert box["y"] < field["y"] < run["y"] < run["y"] + run["height"] < box["y"] + box["height"]
        one_line = field["height"]
        visit.get("#message").fill("One\nTwo\nThree\nFour")
        grown = visit.get("#message").bounding_box()
        assert grown and grown["height"] > 2 * one_line
        visit.get("#message").fill("")
        visit.page.keyboard.press("ArrowUp")  # there is no message yet
        expect(visit.get("#message")).to_be_focused()
        for message in ("First", "Second"):
            say(visit, message)
            visit.wait_until_finished()
        visit.get("#message").fill("Unsent")
        visit.page.keyboard.press("ArrowUp")
        expect(visit.get("#message")).to_be_focused()
        visit.get("#message").fill("")
        visit.page.keyboard.press("ArrowUp")
        expect(visit.get(".editor textarea")).to_have_value("Second")
        visit.page.keyboard.press("Escape")
        expect(visit.get("#message")).to_be_focused()
        visit.page.keyboard.press("ArrowUp")
        visit.page.keyboard.insert_text("!")
        visit.page.keyboard.press("Enter")
        visit.wait_until_finished()
        expect(visit.get("article.user .branches").last).to_contain_text("2/2")
        assert "!" in stub.bodies[-1]["messages"][-1]["content"]


def colours(visit: Visit, selector: str) -> list[str]:
    found: list[str] = visit.get(selector).evaluate_all(
        "nodes => nodes.map(node => getComputedStyle(node).backgroundColor)"
    )
    return found


def test_the_legend_names_each_colour_with_its_share_and_shows_one_experts_tokens(browser: Browser) -> None:
    with stub_server() as stub, visiting(browser, stub.url) as visit:
        ready(visit)
        stub.tokens = list("abcdefghij")  # token i takes expert i first in layer 0
        visit.write("A prompt")
        expect(visit.get("#expert-legend")).to_be_hidden()
        visit.choose("tint", "expert")
        swatches = visit.get("#expert-legend button")
        expect(swatches.first).to_have_text("0 · 23 %")  # of 13: two of the prompt, and the last, empty one
        assert swatches.all_inner_texts()[:3] == ["0 · 23 %", "1 · 23 %", "2 · 15 %"]
        assert colours(visit, "#continuation .t")[:8] == colours(visit, "#expert-legend button")
        swatches.nth(1).click()
        shown = "nodes => nodes.flatMap((node, i) => node.classList.contains('dimmed') ? [] : [i])"
        assert visit.get("#continuation .t").evaluate_all(shown) == [1, 9]
        expect(swatches.nth(1)).to_have_attribute("aria-pressed", "true")
        assert colours(visit, "#continuation .t")[1] == colours(visit, "#expert-legend button")[1]
        visit.set_slider("#layer", 1)  # token i takes expert i + 1 first
        assert visit.get("#continuation .t").evaluate_all(shown) == [0, 8]
        num_dimmed = visit.get("#continuation .dimmed").count()
        visit.get("#heat tbody td").first.hover()
        expect(visit.get("#continuation .dimmed")).not_to_have_count(num_dimmed)
        visit.page.mouse.move(0, 0)
        expect(visit.get("#continuation .dimmed")).to_have_count(num_dimmed)
        assert visit.get("#continuation .t").evaluate_all(shown) == [0, 8]
        swatches.nth(1).click()
        expect(visit.get("#continuation .dimmed")).to_have_count(0)


def docked(visit: Visit, stub: StubServer) -> dict[str, float]:
    """Dock the card of the first token; check that it stays and follows the pointer. Return its rectangle."""
    ready(visit)
    stub.tokens = ["First", " second", " third"]
    visit.write("A prompt")
    visit.get("#continuation .t").nth(0).click(button="right")
    visit.page.mouse.move(0, 0)
    expect(visit.get("#continuation .at")).to_have_count(0)
    expect(visit.get("#card")).to_contain_text("First")
    visit.get("#continuation .t").nth(2).hover()
    expect(visit.get("#card code").first).to_have_text("␣third")
    visit.page.mouse.move(0, 0)
    expect(visit.get("#continuation .at")).to_have_count(0)
    expect(visit.get("#card")).to_be_visible()
    place = visit.get("#card").bounding_box()
    assert place
    return dict(place)


def test_the_card_docks_at_the_right_edge_and_on_a_phone_at_the_bottom(browser: Browser) -> None:
    with stub_server() as stub:
        with visiting(browser, stub.url) as visit:
            place = docked(visit, stub)
            assert place["y"] < 100
            for width in (1360, 1024):
                visit.page.set_viewport_size({"width": width, "height": 820})
                paper, card = visit.get("#write").bounding_box(), visit.get("#card").bounding_box()
                assert paper and card
                assert paper["x"] + paper["width"] - 40 < card["x"] + card["width"] <= paper["x"] + paper["width"]
            presets = visit.get(".presets")
            assert presets.evaluate("box => box.scrollWidth <= box.clientWidth")
            visit.get("#card").click()  # releases it
            expect(visit.get("#card")).to_be_hidden()
            visit.get("#continuation .tokens").focus()
            visit.page.keyboard.press("ArrowRight")
            visit.page.keyboard.press("p")
            visit.get("#prompt").focus()
            expect(visit.get("#card")).to_be_visible()
        with visiting(browser, stub.url, size=PHONE) as visit:
            place = docked(visit, stub)
            assert (place["x"], place["width"], place["y"] + place["height"]) == (0, PHONE[0], PHONE[1])


def test_a_reader_above_the_end_gets_a_button_to_it_and_a_message_is_deleted_at_the_second_click(
    browser: Browser,
) -> None:
    to_end = "paper => paper.scrollHeight - paper.scrollTop - paper.clientHeight"
    with stub_server() as stub, visiting(browser, stub.url) as visit:
        ready(visit)
        visit.choose("mode", "chat")
        stub.tokens = [f"line {number}\n" for number in range(60)]
        say(visit, "Go on")
        visit.wait_until_finished()
        expect(visit.get("#down")).to_be_hidden()
        visit.get("#paper").evaluate("paper => { paper.scrollTop = 0 }")
        visit.get("#down").click()
        expect(visit.get("#down")).to_be_hidden()
        assert visit.get("#paper").evaluate(to_end) < 48
        delete = visit.get("article.assistant").get_by_role("button", name="Delete")
        delete.click()
        visit.get("#message").focus()  # the question is withdrawn
        delete.click()
        expect(visit.get("article")).to_have_count(2)
        visit.get("article.assistant").get_by_role("button", name="Sure?").click()
        expect(visit.get("article")).to_have_count(1)


def test_a_card_closes_when_the_tokens_below_the_pointer_go(browser: Browser) -> None:
    with stub_server() as stub, visiting(browser, stub.url) as visit:
        ready(visit)
        visit.write("A prompt of words")
        visit.choose("tint", "surprise")
        visit.get("#prompt-tokens .t").first.wait_for(state="attached")
        card, path = visit.get("#card"), visit.get("#heat .path")

        def point_at(selector: str) -> None:
            box = visit.get(selector).nth(1).bounding_box()
            assert box
            for step in (3, 4):
                visit.page.mouse.move(box["x"] + step, box["y"] + 9)
            expect(card).to_be_visible()
            expect(path).not_to_have_count(0)

        point_at("#prompt-tokens .t")
        visit.get("#prompt").press("End")
        visit.page.keyboard.type("x")
        expect(card).to_be_hidden()
        expect(path).to_have_count(0)
        point_at("#continuation .t")
        visit.page.keyboard.press("Control+Enter")
        visit.wait_until_finished()
        expect(card).to_be_hidden()
        expect(path).to_have_count(0)


def test_a_prompt_whose_reading_was_refused_is_read_again_by_the_next_choice(browser: Browser) -> None:
    error = {"error": {"message": "It is busy."}}
    with stub_server() as stub, visiting(browser, stub.url, statuses=(503,)) as visit:
        ready(visit)
        visit.write("A prompt")
        visit.page.route("**/v1/completions", lambda route: route.fulfill(status=503, json=error))
        with visit.page.expect_response("**/v1/completions"):
            visit.choose("tint", "surprise")
        visit.get("#prompt").press("End")
        visit.page.keyboard.type("x")
        visit.page.keyboard.press("Backspace")
        expect(visit.get("#continuation")).not_to_have_class("stale")
        expect(visit.get("#prompt-tokens > *")).to_have_count(0)
        visit.page.unroute("**/v1/completions")
        visit.choose("tint", "expert")
        expect(visit.get("#prompt-tokens .t")).to_have_count(2)


def test_a_prompt_gets_its_colours_when_its_tab_opens(browser: Browser) -> None:
    with stub_server() as stub, visiting(browser, stub.url) as visit:
        ready(visit)
        visit.write("A prompt")
        visit.choose("mode", "chat")
        visit.choose("tint", "surprise")
        visit.choose("mode", "completion")
        expect(visit.get("#prompt-tokens .t")).to_have_count(2)


def choose(visit: Visit, *files: Path) -> None:
    with visit.page.expect_file_chooser() as chooser:
        visit.get("#attach").click()
    chooser.value.set_files(files)


def test_files_become_text_of_the_message_or_the_prompt(browser: Browser, tmp_path: Path) -> None:
    code, image, large = (tmp_path / name for name in ("add.py", "a.png", "large.txt"))
    code.write_text("def add(a, b):\n    return a + b  # é\n")
    image.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0")
    large.write_text("a" * 1_000_001)
    with stub_server() as stub, visiting(browser, stub.url) as visit:
        visit.get("#heat td").first.wait_for()
        visit.choose("mode", "chat")
        visit.get("#message").fill("What does this do?")
        choose(visit, code)
        fenced = "What does this do?\n\nadd.py:\n```py\ndef add(a, b):\n    return a + b  # é\n```\n"
        expect(visit.get("#message")).to_have_value(fenced)
        expect(visit.get("#message")).to_be_focused()
        for refused in (image, large):
            choose(visit, refused)
            expect(visit.get("#toast")).to_contain_text(refused.name)
        expect(visit.get("#message")).to_have_value(fenced)
        visit.page.keyboard.press("Enter")
        visit.wait_until_finished()
        assert stub.bodies[-1]["messages"][0]["content"] == fenced.strip()
        expect(visit.get("article.user .code-head span")).to_have_text("py")
        expect(visit.get("article.user .comment")).to_have_text("# é")
        assert visit.page.evaluate(DROP, ["#turns", "b.txt", "two"])
        expect(visit.get("#message")).to_have_value("b.txt:\n```txt\ntwo\n```\n")
        visit.choose("mode", "completion")
        visit.get("#prompt").fill("One, ")
        visit.page.evaluate(DROP, ["#paper", "b.txt", "two"])
        expect(visit.get("#prompt")).to_have_value("One, two")
        expect(visit.get("#prompt-copy")).to_have_text("One, two")
        assert not visit.page.evaluate(
            DROP.replace("new File([content], name)", "content, 'text/plain'"), ["#prompt", "", "a"]
        )


@pytest.mark.parametrize(("mode", "size"), [("compare", (390, 844)), ("chat", (640, 400))])
def test_a_panel_without_a_text_opens_at_its_top(browser: Browser, mode: str, size: tuple[int, int]) -> None:
    with stub_server() as stub, visiting(browser, stub.url, size=size) as visit:
        ready(visit)
        visit.get("#prompt").fill("A prompt\n" * 60)
        visit.choose("mode", mode)
        visit.page.evaluate("new Promise((resolve) => setTimeout(resolve))")  # behind the page's own
        assert visit.get("#paper").evaluate("paper => [paper.scrollTop, paper.scrollHeight > paper.clientHeight]") == [
            0,
            True,
        ]


def test_the_card_of_a_token_leaves_the_map_of_experts_in_view(browser: Browser) -> None:
    with stub_server() as stub, visiting(browser, stub.url, size=(1280, 800)) as visit:
        ready(visit)
        stub.tokens = ["word"] * 14 + [" "]
        visit.write("A prompt")
        visit.get("#continuation .t").nth(13).hover()
        card, side = visit.get("#card").bounding_box(), visit.get("#inside").bounding_box()
        assert card and side and card["x"] + card["width"] <= side["x"]


def test_a_narrow_window_shows_the_models_name_and_one_row_of_an_answers_buttons(browser: Browser) -> None:
    with stub_server() as stub:
        model = stub.model()
        stub.model = lambda: {**model, "id": "smoe-demo"}  # type: ignore[method-assign]
        with visiting(browser, stub.url, size=(640, 400)) as visit:
            ready(visit)
            assert visit.get("#model").evaluate("name => name.scrollWidth <= name.clientWidth")
        with visiting(browser, stub.url, size=(390, 844)) as visit:
            ready(visit)
            visit.choose("mode", "chat")
            say(visit, "Hello")
            visit.wait_until_finished()
            buttons = visit.get("article.assistant .turn-actions button:visible").all()
            assert len({box["y"] for button in buttons if (box := button.bounding_box())}) == 1
