"""The expert explorer: what GET /experts returns about one expert, and an answer without it."""

import json
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from tests.e2e.playground.test_page import violations
from tests.support.playground.browser import Visit
from tests.support.servers.running import RunningServer

pytestmark = pytest.mark.browser
PROMPT = "It was not in her power to"
IS_DIMMED = "tokens => tokens.map(token => token.classList.contains('dimmed'))"


def cell(visit: Visit, layer: int, expert: int) -> Any:
    return visit.get("#heat tbody tr").nth(layer).locator("td").nth(expert)


def test_a_pinned_expert_shows_what_the_api_returns(visit: Visit, server: RunningServer) -> None:
    visit.get("#window").select_option("since start")
    visit.write(PROMPT)
    layer = httpx.get(server.url + "/experts").json()["layers"][2]
    expert = max(range(8), key=layer["tokens"].__getitem__)
    expect(cell(visit, 2, expert)).to_have_attribute("data-tokens", str(layer["tokens"][expert]))
    cell(visit, 2, expert).click()
    panel = visit.get("#readout")
    expect(panel).to_contain_text(f"Layer 2, expert {expert}")
    expect(panel).to_contain_text(f"{layer['tokens'][expert]:,} tokens")
    expect(panel).to_contain_text(f"Entropy of the layer: {layer['entropy']:.2f} of 3.00 bits")
    counts = [int(text.replace(",", "")) for text in panel.locator(".top-tokens span").all_text_contents()]
    assert counts == [top["count"] for top in layer["top_tokens"][expert]][:12] and counts
    partner = max(range(8), key=layer["pairs"][expert].__getitem__)
    expect(panel).to_contain_text(f"Together with expert {partner} (")
    assert not violations(visit)
    visit.get("#readout .close").click()
    expect(panel).to_contain_text("Click an expert")


def test_the_map_is_walked_by_keyboard_and_an_expert_can_be_switched_off(visit: Visit) -> None:
    visit.set_slider("#max_tokens", 16)
    visit.write(PROMPT)
    cell(visit, 0, 0).focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "Enter"):
        visit.page.keyboard.press(key)
    expect(visit.get("#readout")).to_contain_text("Layer 1, expert 2")
    with visit.page.expect_request("**/v1/completions") as sent:
        visit.get(".switch-expert").click()
    mask = json.loads(sent.value.post_data or "")["expert_mask"]
    assert mask == [[(layer, expert) != (1, 2) for expert in range(8)] for layer in range(5)]
    visit.wait_until_finished()
    expect(visit.get(".switch-expert")).to_have_text("Switch on and answer again")
    with visit.page.expect_request("**/v1/completions") as sent:
        visit.get(".switch-expert").click()
    assert "expert_mask" not in json.loads(sent.value.post_data or "")
    visit.wait_until_finished()


def test_an_expert_dims_the_tokens_of_others_and_a_token_shows_its_path(visit: Visit, server: RunningServer) -> None:
    visit.write(PROMPT)
    body = {"max_tokens": 256, "seed": visit.seed, "expert_routing": True}
    routing = server.complete(PROMPT, **body).json()["choices"][0]["expert_routing"]
    cell(visit, 1, 2).hover()
    dimmed = visit.get("#continuation .t").evaluate_all(IS_DIMMED)
    assert dimmed[: len(routing)] == [2 not in row[1] for row in routing]
    assert not any(dimmed[len(routing) :]), "the last token was never computed"
    assert len(set(dimmed)) == 2
    index = visit.visible_token()
    visit.get("#continuation .t").nth(index).hover()
    rows = visit.get("#heat tbody tr").all()
    path = [row.locator("td").evaluate_all("cells => cells.map(c => c.classList.contains('path'))") for row in rows]
    assert path == [[expert in chosen for expert in range(8)] for chosen in routing[index]]
