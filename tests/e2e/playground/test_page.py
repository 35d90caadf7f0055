"""The playground in Chromium against a real server, compared with responses of the API."""

import json
import math
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Browser, expect

from tests.support.forked.commands import popen
from tests.support.paths import FAKE_ENGINE_SERVER
from tests.support.playground.browser import PHONE, Visit, abort, visiting
from tests.support.ports import free_port
from tests.support.servers.running import KEY, MODEL, RunningServer, wait_until_ready

pytestmark = pytest.mark.browser
PROMPT = "It was not in her power to"


def same_choice(server: RunningServer, visit: Visit, **fields: object) -> dict[str, Any]:
    """Send the last request of the page again through the API, with its seed, and return the choice."""
    body = {"max_tokens": 256, "seed": visit.seed, "logprobs": 5, "expert_routing": True, **fields}
    choice: dict[str, Any] = server.complete(PROMPT, **body).json()["choices"][0]
    return choice


def test_a_text_is_what_the_api_gives_for_its_seed(visit: Visit, server: RunningServer) -> None:
    visit.write(PROMPT)
    figures = visit.get("#summary").inner_text()  # without a rate if the text arrives at once
    choice = same_choice(server, visit)
    assert visit.text == choice["text"]
    assert re.search(r"\d+ m?s first token", figures)
    assert f"{len(choice['logprobs']['tokens'])} tokens" in figures


def test_a_token_shows_its_alternatives_and_its_experts(visit: Visit, server: RunningServer) -> None:
    visit.set_slider("#experts_per_token", 3)
    visit.write(PROMPT)
    choice = same_choice(server, visit, experts_per_token=3)
    tokens = choice["logprobs"]["tokens"]
    index = next(i for i in range(4, len(tokens)) if tokens[i].strip())  # a line break has no area to hover over
    visit.get("#continuation .t").nth(index).hover()
    card = visit.get("#card")
    expect(card).to_be_visible()
    assert f"logprob {choice['logprobs']['token_logprobs'][index]:.3f}" in card.inner_text()
    highest = max(choice["logprobs"]["top_logprobs"][index].values())
    assert card.locator(".others span").first.inner_text() == format_percent(math.exp(highest))
    lit = "cells => cells.map(cell => cell.className !== '')"
    cells = card.locator(".routes i").evaluate_all(lit)
    layers = [[i for i, is_lit in enumerate(cells[start : start + 8]) if is_lit] for start in range(0, len(cells), 8)]
    assert layers == [sorted(chosen) for chosen in choice["expert_routing"][index]]
    visit.page.mouse.move(0, 0)
    expect(card).to_be_hidden()


def format_percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share < 0.1 else f"{round(100 * share)} %"


def test_arrow_keys_move_through_tokens_and_describe_them(visit: Visit) -> None:
    visit.write(PROMPT)
    visit.get("#continuation .tokens").focus()
    for _ in range(3):
        visit.page.keyboard.press("ArrowRight")
    third = visit.get("#continuation .t").nth(2).inner_text()
    expect(visit.get("#spoken")).to_contain_text("Instead: ")
    expect(visit.get("#spoken")).to_contain_text(third.strip())
    expect(visit.get("#spoken")).to_contain_text("First expert in each layer")


def test_the_heat_map_has_the_counts_of_the_api(visit: Visit, server: RunningServer) -> None:
    with visit.page.expect_response("**/experts"):
        visit.get("#window").select_option("since start")
    before = [layer["tokens"] for layer in httpx.get(server.url + "/experts").json()["layers"]]
    visit.write("def read_lines(path):")
    deadline = time.monotonic() + 30
    while visit.heat() != [layer["tokens"] for layer in httpx.get(server.url + "/experts").json()["layers"]]:
        assert time.monotonic() < deadline
        visit.page.wait_for_timeout(200)
    added = {sum(new) - sum(old) for new, old in zip(visit.heat(), before, strict=True)}
    assert len(added) == 1 and min(added) > 0, "every layer sees every token"


def test_the_text_is_coloured_by_surprise_and_by_expert(visit: Visit) -> None:
    visit.write(PROMPT)
    token = visit.get("#continuation .t").nth(1)
    background = "token => getComputedStyle(token).backgroundColor"
    plain = token.evaluate(background)
    visit.choose("tint", "surprise")
    surprised = token.evaluate(background)
    visit.choose("tint", "expert")
    by_first_layer = [token.evaluate(background) for token in visit.get("#continuation .routed").all()[:12]]
    visit.set_slider("#layer", 3)
    by_fourth_layer = [token.evaluate(background) for token in visit.get("#continuation .routed").all()[:12]]
    assert len({plain, surprised, by_first_layer[1]}) == 3
    assert by_first_layer != by_fourth_layer


def test_continue_makes_the_text_the_prompt(visit: Visit) -> None:
    visit.write(PROMPT)
    text = visit.text
    visit.get("#again").click()
    expect(visit.get("#prompt")).to_have_value(PROMPT + text)
    visit.wait_until_finished()


def test_a_conversation_keeps_its_turns(visit: Visit) -> None:
    visit.choose("mode", "chat")
    visit.set_slider("#temperature", 0)
    for turn in (1, 2):
        visit.get("#message").fill("Count from 3 to 7.")
        visit.page.keyboard.press("Control+Enter")
        expect(visit.get("article.assistant")).to_have_count(turn)
        visit.wait_until_finished()
    assert visit.get("article.assistant .tokens").first.inner_text().strip() == "3 4 5 6 7"
    visit.get("#again").click()
    visit.wait_until_finished()
    expect(visit.get("article")).to_have_count(4)


def test_the_request_as_curl_and_as_python_gives_the_same_text(visit: Visit, server: RunningServer) -> None:
    visit.write(PROMPT)
    seed, text = visit.seed, visit.text
    visit.get("#summary .seed").click()  # later requests have this seed
    visit.set_slider("#experts_per_token", 2)
    visit.get("#copy-curl").click()
    expect(visit.get("#toast")).to_have_text("Copied as curl")
    arguments = shlex.split(visit.page.evaluate("navigator.clipboard.readText()"))
    body = json.loads(arguments[arguments.index("-d") + 1])
    assert (arguments[:3], body["seed"]) == (["curl", "-N", f"{server.url}/v1/completions"], seed)
    assert server.post("/v1/completions", body | {"stream": False}).json()["choices"][0]["text"] == text
    visit.get("#copy-python").click()
    expect(visit.get("#toast")).to_have_text("Copied as Python")
    program = visit.page.evaluate("navigator.clipboard.readText()")
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (ran.stdout, ran.stderr) == (text, "")


def test_a_text_that_is_too_long_is_refused_in_words_of_the_page(browser: Browser, server: RunningServer) -> None:
    with visiting(browser, server.url, statuses=(400,)) as visit:
        visit.get("#heat td").first.wait_for()  # the page knows the model's name
        long_prompt = "word " * 3000
        visit.get("#prompt").fill(long_prompt)
        visit.get("#run").click()
        said = visit.get("#failure p")
        expect(said).to_have_text("The text is too long for the model's context of 2,048 tokens.")
        expect(visit.get("#stop")).to_be_hidden()
        visit.get(".slider:has(#max_tokens) input[type=number]").fill("2047")
        visit.get("#prompt").fill(PROMPT)
        visit.get("#run").click()
        expect(said).to_have_text(
            "The text and Max tokens together are too long for the model's context of 2,048 tokens."
        )
        visit.get("button[aria-label='Reset Max tokens']").click()
        visit.write(PROMPT)
        expect(visit.get("#failure")).to_be_hidden()


def test_a_server_that_cannot_be_reached_is_reported(browser: Browser, server: RunningServer) -> None:
    with visiting(browser, server.url) as visit:
        visit.get("#heat td").first.wait_for()
        visit.page.route("**/v1/completions", abort)
        visit.get("#prompt").fill(PROMPT)
        visit.get("#run").click()
        expect(visit.get("#failure")).to_contain_text("cannot be reached")
        visit.problems.clear()  # the browser's own error message


@pytest.mark.parametrize("way", ["button", "Escape"])
def test_a_stop_keeps_the_text_and_aborts_the_request(browser: Browser, way: str) -> None:
    """The fake engine gives one token and then nothing, so that only a stop ends the request."""
    port = free_port()
    process = popen(
        [sys.executable, str(FAKE_ENGINE_SERVER), "hold", f"port={port}", "shutdown_timeout=0"],
        stderr=subprocess.DEVNULL,
    )
    running = RunningServer(process, f"http://127.0.0.1:{port}", Path("/dev/null"))
    try:
        wait_until_ready(running)
        with visiting(browser, running.url, statuses=(503, 504)) as visit:
            visit.get("#model").get_by_text(MODEL).wait_for()
            visit.get("#details").uncheck()
            visit.get("#prompt").fill("And he said")
            visit.get("#run").click()
            visit.get("#continuation .t").first.wait_for()
            assert httpx.get(running.url + "/load").json()["running"] == 1
            visit.get("#stop").click() if way == "button" else visit.page.keyboard.press("Escape")
            expect(visit.get("#summary")).to_contain_text("stopped")
            expect(visit.get("#run")).to_be_visible()
            assert visit.text
            running.await_load(0)
    finally:
        process.terminate()
        process.wait(60)


def test_a_key_is_requested_and_kept_only_for_the_tab(browser: Browser, locked: RunningServer) -> None:
    with visiting(browser, locked.url, statuses=(401,)) as visit:
        expect(visit.get("#key-panel")).to_be_visible()
        visit.get("#key").fill(KEY)
        visit.page.keyboard.press("Enter")
        visit.get("#heat td").first.wait_for()
        visit.write(PROMPT)
        assert visit.text
        assert KEY not in visit.page.evaluate("JSON.stringify(localStorage)")


def test_a_theme_is_kept_after_a_reload(visit: Visit) -> None:
    paper = "getComputedStyle(document.getElementById('write')).backgroundColor"
    light = visit.page.evaluate(paper)
    visit.get("#theme").click()
    visit.get("#theme").click()
    dark = visit.page.evaluate(paper)
    visit.page.reload()
    assert visit.page.evaluate(paper) == dark != light
    visit.page.evaluate("localStorage.setItem('smoe-theme', 'constructor')")
    visit.page.reload()
    expect(visit.get("html")).to_have_attribute("data-theme", "system")


def test_a_phone_shows_one_part_at_a_time_without_horizontal_scrolling(browser: Browser, server: RunningServer) -> None:
    with visiting(browser, server.url, size=PHONE) as visit:
        visit.get("#heat td").first.wait_for(state="attached")
        for view in ("sampling", "inside", "write"):
            visit.choose("view", view)
            shown = [part for part in ("write", "sampling", "inside") if visit.get(f"#{part}").is_visible()]
            assert shown == [view]
            assert visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        fonts = "document.fonts.ready.then((fonts) => [...fonts].map(({ status }) => status))"
        assert visit.page.evaluate(fonts) == ["loaded"]
        visit.write(PROMPT)
        assert font_of(visit, "#prompt") == font_of(visit, "#continuation .t"), (
            "prompt and generated text must have the same lines"
        )


def font_of(visit: Visit, selector: str) -> list[str]:
    style = "node => { const { font, lineHeight } = getComputedStyle(node); return [font, lineHeight] }"
    font: list[str] = visit.get(selector).first.evaluate(style)
    return font


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1360, 820), PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing(browser: Browser, server: RunningServer, scheme: str, size: tuple[int, int]) -> None:
    with visiting(browser, server.url, scheme=scheme, size=size) as visit:
        visit.get("#heat td").first.wait_for(state="attached")
        visit.write(PROMPT)
        visit.get("#continuation .t").nth(visit.visible_token()).hover()
        found = violations(visit)
        visit.choose("mode", "chat")
        visit.get("#message").fill("Count from 3 to 7.")
        visit.get("#run").click()
        visit.wait_until_finished()
        found += violations(visit)
        for view in ("sampling", "inside") if size == PHONE else ():
            visit.choose("view", view)
            found += violations(visit)
        assert not found


def violations(visit: Visit) -> list[str]:
    """Return rule and element of every violation, whatever its impact. Half a megabyte of axe is loaded once a page."""
    if not visit.page.evaluate("'axe' in window"):
        visit.page.evaluate(AXE_SCRIPT)
    found = visit.page.evaluate("axe.run({ resultTypes: ['violations'] }).then(({ violations }) => violations)")
    return [f"{rule['id']} ({rule['impact']}): {node['target']}" for rule in found for node in rule["nodes"]]
