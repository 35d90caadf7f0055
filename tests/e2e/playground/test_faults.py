"""The playground when something fails, and while text streams: replies of the API are scripted in the browser."""

import json
import re
from typing import Any

import pytest
from playwright.sync_api import Browser, Route, expect

from tests.support.playground.browser import Visit, abort, visiting
from tests.support.servers.running import RunningServer

pytestmark = pytest.mark.browser
CHAT, COMPLETIONS = "**/v1/chat/completions", "**/v1/completions"
SEED = 7
HAS_MOVED = "paper => paper.scrollHeight > 2 * paper.clientHeight"
TO_END = "paper => paper.scrollHeight - paper.scrollTop - paper.clientHeight"


def replying(*texts: str) -> Any:
    """Return a handler that gives each text as a token, and the empty end token, in one packet."""

    def fulfill(route: Route) -> None:
        is_chat = route.request.url.endswith("chat/completions")
        events = [event(is_chat, text, number + 1) for number, text in enumerate([*texts, ""])]
        body = "".join(f"data: {json.dumps(item)}\n\n" for item in events) + "data: [DONE]\n\n"
        route.fulfill(status=200, content_type="text/event-stream", body=body)

    return fulfill


def event(is_chat: bool, text: str, num_tokens: int) -> dict[str, Any]:
    logprobs: dict[str, Any] = {"tokens": [text], "token_logprobs": [-0.1], "top_logprobs": [{text: -0.1}]}
    if is_chat:
        logprobs = {"content": [{"token": text, "logprob": -0.1, "top_logprobs": [{"token": text, "logprob": -0.1}]}]}
    content = {"delta": {"content": text}} if is_chat else {"text": text}
    choice = {**content, "logprobs": logprobs, "finish_reason": None if text else "stop"}
    return {"choices": [choice], "usage": {"completion_tokens": num_tokens}, "seed": SEED}


def failing(status: int, code: str) -> Any:
    error = {"error": {"message": f"It is {code}.", "code": code, "param": None}}
    return lambda route: route.fulfill(status=status, json=error)


def script(visit: Visit, pattern: str, handler: Any) -> None:
    """Answer requests from now on with `handler` alone."""
    visit.page.unroute(pattern)
    visit.page.route(pattern, handler)


def say(visit: Visit, message: str) -> None:
    visit.get("#message").fill(message)
    visit.page.keyboard.press("Enter")


def test_a_chat_follows_its_answers_and_keeps_them_when_a_retry_fails(visit: Visit) -> None:
    visit.choose("mode", "chat")
    script(visit, CHAT, replying(*[f"line {number}\n" for number in range(60)]))
    visit.get("#message").fill("first")
    visit.page.keyboard.press("Shift+Enter")
    assert visit.get("#message").input_value() == "first\n", "Shift+Enter breaks the line"
    for turn in (1, 2):
        say(visit, f"message {turn}")  # Enter sends
        expect(visit.get("article.assistant")).to_have_count(turn)
        visit.wait_until_finished()
    paper = visit.get("#paper")
    assert paper.evaluate(HAS_MOVED) and paper.evaluate(TO_END) < 48, "the newest answer is in view"
    assert "tokens/s" not in visit.get("#summary").inner_text(), "one packet has no rate"
    ends = "token => getComputedStyle(token, '::before').content"
    assert visit.get("article.assistant .t").last.evaluate(ends) in ("none", "normal"), "no mark behind the answer"

    paper.evaluate("paper => { paper.scrollTop = 0 }")
    script(visit, CHAT, failing(429, "queue_full"))
    visit.expected_statuses.add(429)
    visit.get("#message").fill("a draft")
    visit.get("#again").click()
    expect(visit.get("#failure")).to_contain_text("queue_full")
    assert (visit.get("article.assistant .tokens").last.text_content() or "").startswith("line 0")
    assert visit.get("article").count() == 4 and visit.get("#message").input_value() == "a draft"
    script(visit, CHAT, replying("better"))
    visit.get("#failure button").click()
    expect(visit.get("article.assistant .tokens").last).to_have_text("better")
    expect(visit.get("#failure")).to_be_hidden()
    assert visit.get("#message").input_value() == "a draft"


def test_a_completion_keeps_its_text_when_the_prompt_is_edited_or_a_retry_fails(visit: Visit) -> None:
    script(visit, COMPLETIONS, replying("one", " two"))
    visit.write("A prompt")
    visit.get("#prompt").press("End")
    visit.page.keyboard.type("x")
    assert visit.text == "one two"
    expect(visit.get("#continuation")).to_have_class("stale")
    error = {"message": "The server is overloaded; try again after the time in Retry-After.", "code": "overloaded"}
    headers = {"retry-after": "3"}
    script(visit, COMPLETIONS, lambda route: route.fulfill(status=503, json={"error": error}, headers=headers))
    visit.get("#run").click()
    expect(visit.get("#failure p")).to_have_text("The server is overloaded. Try again in 3 s.")
    assert visit.text == "one two"
    visit.get("#prompt").press("y")
    expect(visit.get("#failure")).to_be_hidden()


def test_a_request_to_a_server_that_loads_shows_the_progress_and_is_sent_when_it_is_ready(visit: Visit) -> None:
    loading = {"phase": "loading", "stage": "weights", "loaded_bytes": 30, "total_bytes": 120}
    script(visit, "**/health", lambda route: route.fulfill(status=503, json=loading))
    script(visit, COMPLETIONS, failing(503, "loading"))
    expect(visit.get("#progress")).to_have_text("loading weights, 25 %")
    visit.get("#prompt").fill("A prompt")
    visit.get("#run").click()
    expect(visit.get("#failure")).to_contain_text("as soon as the server is ready")
    script(visit, COMPLETIONS, replying("at last"))
    visit.page.unroute("**/health")
    visit.get("#continuation .t").first.wait_for()
    assert visit.text == "at last"
    expect(visit.get("#failure")).to_be_hidden()
    expect(visit.get("#progress")).to_have_text("")


def test_a_dead_server_is_shown_as_such_without_its_last_figures(visit: Visit) -> None:
    expect(visit.get("#health")).to_have_attribute("data-phase", "ready")
    running = visit.get(".chart b").nth(3)
    expect(running).to_have_text("0")
    for path in ("health", "load/recent*", "experts*"):
        script(visit, f"**/{path}", abort)
    expect(visit.get("#health")).to_have_attribute("data-phase", "unreachable")
    expect(visit.get("#progress")).to_have_text("cannot be reached")
    expect(running).to_have_text("–")
    assert set(visit.get(".chart b").all_inner_texts()) == {"–"}
    for path in ("health", "load/recent*", "experts*"):
        visit.page.unroute(f"**/{path}")
    expect(visit.get("#health")).to_have_attribute("data-phase", "ready")
    expect(running).to_have_text("0")
    visit.problems[:] = [problem for problem in visit.problems if "ERR_FAILED" not in problem]


def test_a_wrong_key_is_named_and_the_panel_stays_open(visit: Visit) -> None:
    def check_key(route: Route) -> None:
        if route.request.headers.get("authorization") == "Bearer right":
            route.continue_()
        else:
            route.fulfill(status=401, json={"error": {"message": "Send a valid API key."}})

    script(visit, "**/v1/models", check_key)
    visit.get("#key-button").click()
    for key in ("wrong", "right"):
        visit.get("#key").fill(key)
        visit.page.keyboard.press("Enter")
        if key == "wrong":
            expect(visit.get("#key-fault")).to_have_text("The server does not accept this key.")
            expect(visit.get("#key-panel")).to_be_visible()
    expect(visit.get("#key-panel")).to_be_hidden()


VIEW = """async () => {
  const { tokenView } = await import("/playground/text/token_view.js");
  const { display } = await import("/playground/text/display.js");
  const shown = [];
  const card = { show: (token) => shown.push(token.routing ?? null), hide: () => {} };
  Object.assign(display, { card, numExperts: 2, layer: 0 });
  const view = tokenView();
  document.getElementById("continuation").replaceChildren(view.element);
  Object.assign(window, { display, view, shown });
}"""
ADD = "(rows) => view.add([{ text: 'a-token-that-is-long-enough', logprob: -1, others: [] }], rows)"


def test_a_card_opens_only_under_a_moving_pointer_and_gets_its_experts_later(visit: Visit) -> None:
    visit.page.evaluate(VIEW)
    visit.page.evaluate(ADD, [])
    box = visit.get("#continuation .t").first.bounding_box()
    assert box is not None
    x, y = round(box["x"] + 20), round(box["y"] + box["height"] / 2)
    visit.page.evaluate(VIEW)
    visit.page.mouse.move(x, y)
    visit.page.evaluate(ADD, [])  # below the resting pointer
    moves = "(at) => view.element.firstChild.dispatchEvent(new PointerEvent('pointermove', { ...at, bubbles: true }))"
    visit.page.evaluate(moves, {"clientX": x, "clientY": y})  # browsers send one when the layout changes
    visit.page.evaluate("view.element.firstChild.dispatchEvent(new PointerEvent('pointerover', { bubbles: true }))")
    assert visit.page.evaluate("shown") == []
    visit.page.mouse.move(x + 5, y)
    assert visit.page.evaluate("shown") == [None]
    visit.page.evaluate(ADD, [[[1, 0]]])
    assert visit.page.evaluate("shown") == [None, [[1, 0]]]


def test_the_description_of_the_api_is_dark_on_a_dark_desktop(browser: Browser, server: RunningServer) -> None:
    backgrounds = []
    for scheme in ("light", "dark"):
        with visiting(browser, f"{server.url}/docs", scheme=scheme) as visit:
            visit.problems.clear()  # `visiting` expects the URL of the page itself
            style = "() => getComputedStyle(document.documentElement)"
            backgrounds.append(visit.page.evaluate(f"{style}.backgroundColor".replace("() => ", "")))
    assert len(set(backgrounds)) == 2, backgrounds


RATE = """async () => {
  const { generate } = await import("/playground/text/generation.js");
  const rateOf = async (packets) => {
    let now = 0;
    performance.now = () => now;
    const source = { async pull(controller) {
      const packet = packets.shift();
      if (!packet) return controller.close();
      now = packet.ms;
      controller.enqueue(new TextEncoder().encode(packet.events));
    } };
    const body = new ReadableStream(source, { highWaterMark: 0 });
    const meter = await generate({ post: async () => ({ body }) }, { fields: {} }, undefined, () => {});
    return [meter.firstTokenMs, meter.tokensPerSecond];
  };
  const upTo = (count) => `data: {"choices": [], "usage": {"completion_tokens": ${count}}}\\n\\n`;
  const end = "data: [DONE]\\n\\n";
  return [
    await rateOf([{ ms: 40, events: upTo(1) + upTo(6) + upTo(11) + end }]),
    await rateOf([{ ms: 40, events: upTo(1) }, { ms: 42, events: upTo(11) + end }]),
    await rateOf([{ ms: 40, events: upTo(3) }, { ms: 540, events: upTo(8) }, { ms: 1040, events: upTo(13) + end }]),
  ];
}"""


def test_a_rate_counts_the_tokens_after_the_first_packet_and_needs_time_between_packets(visit: Visit) -> None:
    assert visit.page.evaluate(RATE) == [[40, None], [40, None], [40, 10]]


def test_all_requests_of_a_page_have_one_session_id_and_another_page_has_another(visit: Visit) -> None:
    ids: list[str] = []

    def record(route: Route) -> None:
        ids.append(route.request.headers["x-session-id"])
        replying("one", "two")(route)

    script(visit, CHAT, record)
    for _ in range(2):
        visit.choose("mode", "chat")
        for message in ("a", "b"):
            say(visit, message)
            visit.wait_until_finished()
        visit.page.reload()
    assert ids[0] == ids[1] != ids[2] == ids[3]
    assert all(re.fullmatch("[0-9a-f]{32}", session_id) for session_id in ids)


WALK = """() => {
  const token = (text, id) => ({ text, spelled: text, id, logprob: -1, others: [] });
  window.opened = [];
  display.inspect = ({ before, id }) => opened.push([before, id]);
  view.add(["", "a", "", "b"].map(token), [], { promptIds: [], fields: {} });
}"""


def test_the_keys_pass_over_tokens_without_text_and_request_nothing_about_a_first_token(visit: Visit) -> None:
    visit.page.evaluate(VIEW)
    visit.page.evaluate(WALK)
    here = visit.get("#continuation .at")
    visit.get("#continuation .tokens").focus()
    for key, text in (("Right", "a"), ("Right", "b"), ("Right", "b"), ("Left", "a"), ("Left", "a")):
        visit.page.keyboard.press(f"Arrow{key}")
        expect(here).to_have_text(text)
    visit.page.keyboard.press("Enter")
    assert visit.page.evaluate("opened") == [[[0], 1]]
    visit.page.evaluate(VIEW)
    visit.page.evaluate(WALK.replace('"", "a"', '"a"'))
    visit.get("#continuation .tokens").focus()
    for key in ("ArrowRight", "Enter"):
        visit.page.keyboard.press(key)
    expect(here).to_have_text("a")
    assert visit.page.evaluate("opened") == []
