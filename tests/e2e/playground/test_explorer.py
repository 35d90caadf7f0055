"""The expert explorer: what GET /experts returns about an expert, an answer without it, the experts of one text."""

import json
from collections import Counter
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Route, expect

from tests.e2e.playground.test_page import format_percent, violations
from tests.support.playground.browser import Visit, visiting
from tests.support.playground.stub_server import NUM_EXPERTS, NUM_LAYERS, stub_server
from tests.support.servers.running import RunningServer

pytestmark = pytest.mark.browser
PROMPT = "It was not in her power to"
WIDTH = "node => node.getBoundingClientRect().width / innerWidth"
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


def test_the_period_of_this_answer_counts_what_the_engine_counted_for_it(visit: Visit, server: RunningServer) -> None:
    visit.get("#window").select_option("this answer")
    expect(visit.get("#readout")).to_contain_text("No tokens in this period")
    visit.choose("tint", "surprise")  # the prompt's tokens are read too, and are no part of the answer
    visit.write(PROMPT)
    visit.get("#prompt-tokens .t").first.wait_for(state="attached")
    body = {"max_tokens": 256, "seed": visit.seed, "expert_usage": True, "expert_routing": True, "logprobs": 0}
    reply = server.complete(PROMPT, **body).json()
    counts = reply["usage"]["expert_tokens"]["completion"]
    expert = max(range(8), key=counts[2].__getitem__)
    expect(cell(visit, 2, expert)).to_have_attribute("data-tokens", str(counts[2][expert]))
    assert visit.heat() == counts
    cell(visit, 2, expert).click()
    choice = reply["choices"][0]
    routed = list(zip(choice["logprobs"]["tokens"], choice["expert_routing"], strict=False))
    texts = Counter(text for text, chosen in routed if expert in chosen[2])
    panel = visit.get("#readout")
    shown = [int(text) for text in panel.locator(".top-tokens span").all_text_contents()]
    assert shown == [count for _, count in texts.most_common(12)]
    others = Counter(other for _, chosen in routed if expert in chosen[2] for other in chosen[2] if other != expert)
    [(_, most), *_] = others.most_common()
    partner = panel.get_by_text("Together with").inner_text().split("(")[1].split(")")[0]
    assert partner == format_percent(most / counts[2][expert])
    visit.get("#window").select_option("since start")
    expect(cell(visit, 2, expert)).not_to_have_attribute("data-tokens", str(counts[2][expert]))


def test_a_reply_about_another_period_than_the_chosen_one_is_dropped(browser: Browser) -> None:
    held: list[Route] = []
    with stub_server() as stub, visiting(browser, stub.url) as visit:
        visit.get("#heat td").first.wait_for()
        visit.page.route("**/experts*", lambda route: held.append(route))
        with visit.page.expect_request("**/experts*"):
            visit.get("#window").select_option("since start")
        visit.get("#window").select_option("this answer")
        expect(visit.get("#readout")).to_contain_text("No tokens in this period")
        with visit.page.expect_response("**/experts*") as replied:
            held[0].continue_()
        replied.value.finished()
        visit.page.evaluate("() => new Promise(requestAnimationFrame)")
        assert visit.heat() == [[0] * NUM_EXPERTS] * NUM_LAYERS


def test_the_map_fills_half_of_a_wide_window_and_gives_the_room_back(visit: Visit) -> None:
    size, half = visit.get("#map-size"), pytest.approx(0.5, abs=0.01)
    size.click()
    expect(visit.get("#sampling")).to_be_hidden()
    expect(size).to_have_attribute("aria-pressed", "true")
    for width in (1440, 1024):
        visit.page.set_viewport_size({"width": width, "height": 820})
        assert [visit.get(part).evaluate(WIDTH) for part in ("#inside", "#write")] == [half, half]
        assert visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert cell(visit, 0, 0).evaluate("node => node.getBoundingClientRect().height") > 60
    assert not violations(visit)
    size.click()
    expect(visit.get("#sampling")).to_be_visible()
    assert visit.get("#inside").evaluate(WIDTH) < 0.3
    size.click()
    visit.page.set_viewport_size({"width": 390, "height": 800})
    visit.choose("view", "inside")
    expect(size).to_be_hidden()
    assert visit.get("#inside").evaluate(WIDTH) == 1


def test_the_prompts_tokens_have_the_colours_of_their_scores_and_experts(visit: Visit, server: RunningServer) -> None:
    asked: list[dict[str, Any]] = []
    visit.page.on("request", lambda r: asked.append(r.post_data_json) if "echo" in (r.post_data or "") else None)
    prompt = f"Été 𐏈 & co:\n{PROMPT}"
    visit.set_slider("#experts_per_token", 3)
    visit.write(prompt)
    assert not asked, "nothing is read before the text is coloured"
    visit.choose("tint", "expert")
    visit.set_slider("#layer", 3)
    tokens = visit.get("#prompt-tokens .t")
    tokens.first.wait_for(state="attached")
    fields = {"echo": True, "max_tokens": 0, "logprobs": 5, "expert_routing": True, "experts_per_token": 3}
    choice = server.complete(prompt, **fields).json()["choices"][0]
    gates = server.complete(prompt, **fields, gate_logits=True).json()["choices"][0]
    assert choice["expert_routing"] == gates["expert_routing"], "what the gates say"
    assert "".join(tokens.all_text_contents()) == prompt
    scores = choice["logprobs"]["token_logprobs"]
    assert tokens.count() == len(scores) == len(choice["expert_routing"])
    style = "(spans, name) => spans.map(span => Number(span.style.getPropertyValue(name)))"
    assert tokens.evaluate_all(style, "--hue") == [chosen[3][0] * 45 + 30 for chosen in choice["expert_routing"]]
    surprises = [0 if score is None else min(1, -score / 5) for score in scores]
    assert tokens.evaluate_all(style, "--surprise") == pytest.approx(surprises, abs=1e-3)
    place = "spans => spans.map(span => span.getBoundingClientRect()).map(({ x, y }) => [x, y])"
    field = visit.get("#prompt").bounding_box()
    assert field and tokens.evaluate_all(place)[0] == [field["x"], pytest.approx(field["y"], abs=5)]
    token = tokens.nth(len(scores) - 2)
    token.scroll_into_view_if_needed()  # the page may show the end of a long text
    box = token.bounding_box()
    assert box
    visit.page.mouse.move(box["x"] + 3, box["y"] + 9)
    visit.page.mouse.move(box["x"] + 4, box["y"] + 9)
    expect(visit.get("#card")).to_contain_text(f"logprob {scores[-2]:.3f}")
    visit.page.mouse.move(0, 0)
    expect(visit.get("#card")).to_be_hidden()
    visit.choose("tint", "surprise")
    assert len(asked) == 1, "a prompt is read once"
    visit.get("#prompt").press("End")
    visit.page.keyboard.type("x")
    expect(tokens).to_have_count(0)
