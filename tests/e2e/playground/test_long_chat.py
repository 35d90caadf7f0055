"""A chat of 200 turns: the page touches as much of the document for the last turn as for an early one."""

import pytest
from playwright.sync_api import Browser, expect

from tests.support.playground.browser import visiting
from tests.support.playground.stub_server import stub_server

pytestmark = pytest.mark.browser
NUM_TURNS = 200
# Sends messages as a user does and counts the nodes and attributes that change among the messages.
CHAT = """async (numTurns) => {
  const counts = [];
  let count = 0;
  const add = (records) => {
    for (const { addedNodes, removedNodes, type } of records) {
      count += addedNodes.length + removedNodes.length + (type === "attributes");
    }
  };
  const observer = new MutationObserver(add);
  const messages = document.getElementById("turns");
  observer.observe(messages, { childList: true, subtree: true, attributes: true });
  const ended = () => new Promise((resolve) => {
    const run = document.getElementById("run");
    const waiting = new MutationObserver(() => { if (!run.hidden) { waiting.disconnect(); resolve(); } });
    waiting.observe(run, { attributes: true });
  });
  for (let turn = 0; turn < numTurns; turn += 1) {
    count = 0;
    document.getElementById("message").value = `message ${turn}`;
    const end = ended();
    document.getElementById("composer").requestSubmit();
    await end;
    add(observer.takeRecords());
    counts.push(count);
  }
  return counts;
}"""


def test_the_two_hundredth_turn_costs_the_page_no_more_than_the_tenth(browser: Browser) -> None:
    with stub_server() as stub, visiting(browser, stub.url) as visit:
        visit.get("#heat td").first.wait_for()
        visit.choose("mode", "chat")
        counts = visit.page.evaluate(CHAT, NUM_TURNS)
        expect(visit.get("article")).to_have_count(2 * NUM_TURNS)
        assert len(stub.bodies[-1]["messages"]) == 2 * NUM_TURNS - 1
        assert set(counts[2:]) == {counts[2]} != {0}, "a turn touches the turns before it"
        end = "paper => paper.scrollHeight - paper.scrollTop - paper.clientHeight"
        assert visit.get("#paper").evaluate(end) < 48
        visit.get("#history-button").click()  # stores what is left
        expect(visit.get("#history-list li")).to_have_count(1)
        visit.page.reload()
        expect(visit.get("article")).to_have_count(2 * NUM_TURNS)
        expect(visit.get("article").last).to_be_in_viewport()
        expect(visit.get("#down")).to_be_hidden()
