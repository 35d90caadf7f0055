"""Inside one token: the gates of a clicked token, compared with what the API reports."""

import json
import math
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Route, expect

from tests.e2e.playground.test_page import violations
from tests.support.playground.browser import PHONE, Visit, visiting
from tests.support.playground.stub_server import stub_server
from tests.support.servers.running import RunningServer

pytestmark = pytest.mark.browser
PROMPT = "It was not in her power to"
ROUNDED = 1e-3  # three decimals, and two computations


def generated(visit: Visit, server: RunningServer) -> tuple[int, list[int]]:
    """Let the page generate; return the index of a token that can be clicked, and all ids up to it."""
    visit.set_slider("#max_tokens", 16)
    visit.write(PROMPT)
    body = {"max_tokens": 16, "seed": visit.seed, "return_token_ids": True}
    choice = server.complete(PROMPT, **body).json()["choices"][0]
    index = visit.visible_token()
    return index, choice["prompt_token_ids"] + choice["token_ids"][: index + 1]


def reported(server: RunningServer, ids: list[int], k: int, **fields: object) -> dict[str, Any]:
    """Return the last token's logits, experts and weights, each by layer, when the text is scored."""
    body = {"echo": True, "max_tokens": 0, "gate_logits": True, "experts_per_token": k, **fields}
    choice = server.complete(ids, **body).json()["choices"][0]
    return {name: choice[name][-1] for name in ("gate_logits", "expert_routing", "expert_weights")}


def numbers(cells: Locator) -> list[float | None]:
    return [float(text) if text[-1].isdigit() else None for text in cells.all_text_contents()]


def assert_shows(visit: Visit, layer: int, expected: dict[str, Any]) -> None:
    """Compare the open layer's table with the report of the API."""
    visit.get(f"#gates input[name=gate-layer][value='{layer}']").check(force=True)
    expect(visit.get("#gates caption")).to_contain_text(f"Layer {layer},")
    rows = visit.get("#gates tbody tr")
    assert numbers(rows.locator("td:nth-child(2)")) == pytest.approx(expected["gate_logits"][layer], abs=ROUNDED)
    chosen = expected["expert_routing"][layer]
    weights = dict(zip(chosen, expected["expert_weights"][layer], strict=True))
    shown = numbers(rows.locator("td:nth-child(4)"))
    assert [expert for expert, weight in enumerate(shown) if weight is not None] == sorted(chosen)
    assert [weight for weight in shown if weight is not None] == pytest.approx(
        [weights[expert] for expert in sorted(chosen)], abs=ROUNDED
    )
    powers = rows.locator("td:nth-child(3)").all_text_contents()
    masses = [math.exp(logit) for logit in expected["gate_logits"][layer]]
    masses = [0.0 if power == "off" else mass for power, mass in zip(powers, masses, strict=True)]
    dense = [mass / sum(masses) for mass in masses]
    assert numbers(rows.locator("td:nth-child(5)")) == pytest.approx(dense, abs=ROUNDED), "as if all experts worked"


def test_a_clicked_token_shows_the_gates_of_each_layer_for_each_number_of_experts(
    visit: Visit, server: RunningServer
) -> None:
    index, ids = generated(visit, server)
    visit.get("#continuation .t").nth(index).click()
    expect(visit.get("#gates")).to_be_visible()
    expect(visit.get("#card")).to_be_hidden()
    for k in (2, 1, 8):
        visit.get(f"#gates label:has(input[name=gate-k][value='{k}'])").click()
        expect(visit.get("#gates caption")).to_contain_text(f"{k} of 8 experts")
        expected = reported(server, ids, k)
        for layer in (0, 4):
            assert_shows(visit, layer, expected)
    assert not violations(visit)
    visit.page.keyboard.press("Escape")
    expect(visit.get("#gates")).to_be_hidden()


def test_enter_opens_the_gates_of_the_token_that_the_arrow_keys_reached(visit: Visit, server: RunningServer) -> None:
    generated(visit, server)
    visit.get("#continuation .tokens").focus()
    for _ in range(3):
        visit.page.keyboard.press("ArrowRight")
    visit.page.keyboard.press("Enter")
    expect(visit.get("#gates caption")).to_contain_text("2 of 8 experts")
    visit.get("#gates .close").click()
    expect(visit.get("#gates")).to_be_hidden()


def test_experts_that_are_off_stay_off_inside_a_token(visit: Visit, server: RunningServer) -> None:
    visit.get("#heat tbody tr").nth(1).locator("td").nth(2).click()
    visit.set_slider("#max_tokens", 16)
    visit.get("#prompt").fill(PROMPT)
    visit.get(".switch-expert").click()
    visit.wait_until_finished()
    with visit.page.expect_request(lambda request: "gate_logits" in (request.post_data or "")) as sent:
        visit.get("#continuation .t").nth(3).click()
    body = json.loads(sent.value.post_data or "")
    mask = [[(layer, expert) != (1, 2) for expert in range(8)] for layer in range(5)]
    assert body["expert_mask"] == mask
    expect(visit.get("#gates caption")).to_contain_text("2 of 8 experts")
    assert_shows(visit, 1, reported(server, [*body["prompt"], *body["allowed_token_ids"]], 2, expert_mask=mask))
    expect(visit.get("#gates tbody tr").nth(2).locator("td").nth(1)).to_have_text("off")
    assert visit.get("#gates input[name=gate-k]").evaluate_all("all => all.map(one => one.value)") == ["1", "2"]


def test_on_a_phone_the_first_tap_opens_the_card_and_the_second_the_gates(
    browser: Browser, server: RunningServer
) -> None:
    with visiting(browser, server.url, size=PHONE, touch=True) as visit:
        visit.get("#heat td").first.wait_for(state="attached")
        generated(visit, server)
        token = visit.get("#continuation .t").nth(visit.visible_token())
        token.tap()
        expect(visit.get("#card")).to_be_visible()
        expect(visit.get("#gates")).to_be_hidden()
        token.tap()
        expect(visit.get("#gates caption")).to_contain_text("2 of 8 experts")
        expect(visit.get("#card")).to_be_hidden()
        visit.get("#gates .close").tap()
        token.tap()
        expect(visit.get("#card")).to_be_visible()
        visit.get("label:has([value=sampling])").tap()
        expect(visit.get("#card")).to_be_hidden()


def test_tokens_of_chats_and_of_columns_have_gates_at_their_own_number_of_experts(visit: Visit) -> None:
    visit.choose("mode", "chat")
    visit.get("#message").fill("Count from 3 to 7.")
    visit.page.keyboard.press("Enter")
    visit.wait_until_finished()
    visit.get("article.assistant .t").nth(2).click()
    expect(visit.get("#gates caption")).to_contain_text("2 of 8 experts")
    visit.page.keyboard.press("Escape")
    visit.choose("mode", "compare")
    visit.set_slider("#max_tokens", 16)
    visit.get("#compare-prompt").fill(PROMPT)
    visit.get("#run").click()
    visit.wait_until_finished()
    visit.get(".column").nth(2).locator(".t").nth(1).click()
    expect(visit.get("#gates caption")).to_contain_text("4 of 8 experts")


def test_a_refused_request_is_named_in_the_dialog_and_tried_again_by_the_next_choice(
    visit: Visit, server: RunningServer
) -> None:
    index, _ = generated(visit, server)
    error = {"error": {"message": "The server is busy with other work."}}
    visit.page.route("**/v1/completions", lambda route: route.fulfill(status=503, json=error))
    visit.get("#continuation .t").nth(index).click()
    expect(visit.get("#gates .gate-status")).to_have_text("Not ready: The server is busy with other work.")
    expect(visit.get("#gates caption")).to_have_count(0)
    visit.page.unroute("**/v1/completions")
    for k in (1, 2):
        visit.get(f"#gates label:has(input[name=gate-k][value='{k}'])").click()
        expect(visit.get("#gates caption")).to_contain_text(f"{k} of 8 experts")


def test_a_token_that_is_rested_on_shows_its_weights_in_the_map(visit: Visit, server: RunningServer) -> None:
    index, ids = generated(visit, server)
    token = visit.get("#continuation .t").nth(index)
    asked: list[str] = []
    visit.page.on("request", lambda request: asked.append(request.post_data or ""))
    token.hover()
    expect(visit.get("#heat .path")).to_have_count(10)
    visit.page.mouse.move(0, 0)
    visit.get("#weights").check()
    token.hover()
    expected = reported(server, ids, 2)
    layers = zip(expected["expert_routing"], expected["expert_weights"], strict=True)
    by_layer = [dict(zip(chosen, weights, strict=True)) for chosen, weights in layers]
    expect(visit.get("#heat .path").first).not_to_have_attribute("data-weight", "")
    weights_of = "cells => cells.map(cell => cell.dataset.weight)"
    for row, weights in zip(visit.get("#heat tbody tr").all(), by_layer, strict=True):
        percents = row.locator("td").evaluate_all(weights_of)
        assert percents == [str(round(100 * weights[expert])) if expert in weights else "" for expert in range(8)]
    lit = visit.get("#card .routes .on").evaluate_all("all => all.map(i => +i.style.getPropertyValue('--weight'))")
    in_order = [weights[expert] for weights in by_layer for expert in sorted(weights)]
    assert lit == pytest.approx(in_order, abs=ROUNDED)
    visit.page.mouse.move(0, 0)
    expect(visit.get("#heat .path")).to_have_count(0)
    token.hover()
    expect(visit.get("#heat .path").first).not_to_have_attribute("data-weight", "")
    assert sum("gate_logits" in body for body in asked) == 1, "weights are read once, and only where they are wanted"


def is_about_gates(request: Any) -> bool:
    return "gate_logits" in (request.post_data or "")


def test_weights_are_requested_one_token_at_a_time_and_once_while_the_reply_is_on_its_way(browser: Browser) -> None:
    held: list[Route] = []
    aborted: list[Any] = []
    with stub_server() as stub, visiting(browser, stub.url, statuses=(503,)) as visit:
        stub.tokens = ["First", " second", " third"]
        visit.get("#heat td").first.wait_for()
        visit.write("A prompt")
        visit.page.on("requestfailed", lambda request: aborted.append(request))
        visit.page.route("**/v1/completions", lambda route: held.append(route))
        visit.page.clock.install()
        tokens, switch, path = visit.get("#continuation .t"), visit.get("#weights"), visit.get("#heat .path").first
        switch.check()

        def rest_on(place: int) -> None:
            tokens.nth(place).hover()
            visit.page.clock.run_for(300)

        with visit.page.expect_request(is_about_gates):
            rest_on(0)
        visit.page.mouse.move(0, 0)
        expect(visit.get("#continuation .at")).to_have_count(0)
        rest_on(0)
        held[0].continue_()
        expect(path).to_have_attribute("data-weight", "50")
        rest_on(0)
        assert len(held) == 1, "entered again, and once more with the weights"
        with visit.page.expect_request(is_about_gates):
            rest_on(1)
        with visit.page.expect_request(is_about_gates), visit.page.expect_event("requestfailed"):
            rest_on(2)
        assert [request.post_data for request in aborted] == [held[1].request.post_data]
        expect(switch).to_be_checked()
        held[2].fulfill(status=503, json={"error": {"message": "It is busy."}})
        expect(visit.get("#toast")).to_have_text("No weights: It is busy.")
        expect(switch).not_to_be_checked()
        rest_on(1)
        assert len(held) == 3
        switch.check()
        with visit.page.expect_request(is_about_gates):
            rest_on(2)
