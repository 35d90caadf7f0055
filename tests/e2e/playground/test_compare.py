"""Compare: one prompt and one seed side by side, each column as the API gives it, the first difference marked."""

import json
import math
from itertools import takewhile
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.e2e.playground.test_page import violations
from tests.support.playground.browser import Visit, visiting
from tests.support.servers.running import RunningServer

pytestmark = pytest.mark.browser
PROMPT = "It was not in her power to"


def compare(visit: Visit) -> list[dict[str, Any]]:
    """Run the comparison; return the bodies of its requests by column."""
    bodies: list[dict[str, Any]] = []
    visit.page.on("request", lambda r: bodies.append(json.loads(r.post_data)) if r.post_data else None)
    visit.get("#compare-prompt").fill(PROMPT)
    visit.get("#run").click()
    visit.wait_until_finished()
    return bodies


def answer(server: RunningServer, body: dict[str, Any]) -> dict[str, Any]:
    fields = {name: value for name, value in body.items() if name != "stream_options"} | {"stream": False}
    choice: dict[str, Any] = server.post("/v1/completions", fields).json()["choices"][0]
    return choice


# Whether a field's placeholder is shown whole.
FITS = """(field) => {
  const { font, paddingLeft, paddingRight } = getComputedStyle(field);
  const pen = Object.assign(document.createElement("canvas").getContext("2d"), { font });
  const room = field.clientWidth - parseFloat(paddingLeft) - parseFloat(paddingRight);
  return pen.measureText(field.placeholder).width <= room;
}"""


def text_of(visit: Visit, column: int, kind: str = "t") -> list[str]:
    return visit.get(".column").nth(column).locator(f".tokens .{kind}").all_text_contents()


def test_each_column_is_what_the_api_gives_for_the_seed_and_the_first_difference_is_marked(
    visit: Visit, server: RunningServer
) -> None:
    visit.choose("mode", "compare")
    visit.set_slider("#max_tokens", 48)
    bodies = compare(visit)
    assert [body["experts_per_token"] for body in bodies] == [1, 2, 4]
    assert len({body["seed"] for body in bodies}) == 1
    choices = [answer(server, body) for body in bodies]
    assert ["".join(text_of(visit, i)) for i in range(3)] == [choice["text"] for choice in choices]
    tokens = [choice["logprobs"]["tokens"] for choice in choices]
    shared = len(list(takewhile(lambda same: len(set(same)) == 1, zip(*tokens, strict=False))))
    assert [len(text_of(visit, i, "shared")) for i in range(3)] == [shared] * 3
    assert [len(text_of(visit, i, "diverged")) for i in range(3)] == [1] * 3
    where = f"the first {shared} tokens are the same" if shared else "they differ from the first token on"
    expect(visit.get("#summary")).to_contain_text(where)
    for column, choice in enumerate(choices):
        logprobs = choice["logprobs"]["token_logprobs"]
        mean = sum(logprobs) / len(logprobs)
        figures = visit.get(".column .figures").nth(column).inner_text()
        assert f"mean logprob {mean:.2f}" in figures and f"perplexity {math.exp(-mean):.2f}" in figures


def test_columns_can_be_added_removed_and_set(visit: Visit) -> None:
    visit.choose("mode", "compare")
    visit.get("#add-column").click()
    expect(visit.get(".column")).to_have_count(4)
    expect(visit.get("#add-column")).to_be_disabled()
    for _ in range(2):
        visit.get(".column .remove").last.click()
    expect(visit.get(".column .remove").first).to_be_hidden()
    second = visit.get(".column").nth(1)
    second.locator("select").select_option("1")
    second.locator("input[type=number]").fill("0")
    second.locator("input[type=text]").fill("0, 3")
    visit.set_slider("#max_tokens", 16)
    bodies = compare(visit)
    assert "expert_mask" not in bodies[0]
    layer = [expert not in (0, 3) for expert in range(8)]
    assert (bodies[1]["experts_per_token"], bodies[1]["temperature"]) == (1, 0)
    assert bodies[1]["expert_mask"] == [layer] * 5
    assert not violations(visit)


def test_a_columns_fields_show_their_words_and_its_cross_is_inside(browser: Browser, server: RunningServer) -> None:
    with visiting(browser, server.url, size=(1280, 800)) as visit:
        visit.get("#heat td").first.wait_for()
        visit.choose("mode", "compare")
        column, cross = visit.get(".column").first, visit.get(".column .remove").first
        outer, inner = column.bounding_box(), cross.bounding_box()
        assert outer and inner and inner["x"] + inner["width"] <= outer["x"] + outer["width"] - 3
        assert column.locator("input[type=number]").evaluate(FITS)
