"""Markdown in answers: as nodes, with everything else as text."""

import pytest
from playwright.sync_api import expect

from tests.support.browser import Visit

pytestmark = pytest.mark.browser
RENDER = """async (text) => {
  const { markdown, hasMarkdown } = await import("/playground/text/markdown.js");
  const box = document.createElement("div");
  box.append(...markdown(text));
  for (const node of box.querySelectorAll("[tabindex], [aria-label], [role]")) {
    for (const name of ["tabindex", "aria-label", "role"]) node.removeAttribute(name);
  }
  return [hasMarkdown(text), box.innerHTML];
}"""
CASES = {
    "one\n\ntwo": "<p>one</p><p>two</p>",
    "# A\n### B": "<h3>A</h3><h4>B</h4>",
    "a **b** `c` *d*": "<p>a <strong>b</strong> <code>c</code> <em>d</em></p>",
    "1 * 2 * 3": "<p>1 * 2 * 3</p>",
    "- a\n- b\n  more\n\nc": "<ul><li>a</li><li>b more</li></ul><p>c</p>",
    "2. a\n\n3. b": '<ol start="2"><li>a</li><li>b</li></ol>',
    "- a\n  1. b\n- c": '<ul><li>a<ol start="1"><li>b</li></ol></li><li>c</li></ul>',
    "> a\n> b": "<blockquote><p>a\nb</p></blockquote>",
    "| a | b |\n|---|---|": "<pre>| a | b |\n|---|---|</pre>",
    "[a](https://b.c/d)": '<p><a href="https://b.c/d" target="_blank" rel="noopener noreferrer">a</a></p>',
    "[a](javascript:b)": "<p>[a](javascript:b)</p>",
    "<img src=x onerror=b>": "<p>&lt;img src=x onerror=b&gt;</p>",
    "```c++\n<b>\n": '<div class="code"><div class="code-head"><span>c++</span>'
    '<button type="button" class="quiet">Copy</button>'
    "</div><pre><code>&lt;b&gt;</code></pre></div>",
    "#a\n>b\n-c": "<p>#a</p><blockquote><p>b</p></blockquote><p>-c</p>",
}


def test_markdown_becomes_nodes_and_nothing_else_does(visit: Visit) -> None:
    for text, expected in CASES.items():
        assert visit.page.evaluate(RENDER, text)[1] == expected
    marked = [text for text in CASES if visit.page.evaluate(RENDER, text)[0]]
    assert not {"one\n\ntwo", "1 * 2 * 3", "<img src=x onerror=b>"} & set(marked)
    assert {"# A\n### B", "- a\n- b\n  more\n\nc", "| a | b |\n|---|---|"} <= set(marked)
    expect(visit.get("#failure")).to_be_hidden()
