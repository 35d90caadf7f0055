"""Markdown in answers: as nodes, with everything else as text."""

import pytest
from playwright.sync_api import expect

from tests.support.playground.browser import Visit

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
TEXT_OF = RENDER.replace("box.innerHTML", "box.innerText")
MAX_DEPTH = 8  # of quotes in quotes
CASES = {
    "one\n\ntwo": "<p>one</p><p>two</p>",
    "# A\n### B": "<h3>A</h3><h4>B</h4>",
    "a **b** `c` *d*": "<p>a <strong>b</strong> <code>c</code> <em>d</em></p>",
    "1 * 2 * 3": "<p>1 * 2 * 3</p>",
    "- a\n- b\n  more\n\nc": "<ul><li>a</li><li>b more</li></ul><p>c</p>",
    "2. a\n\n3. b": '<ol start="2"><li>a</li><li>b</li></ol>',
    "- a\n  1. b\n- c": '<ul><li>a<ol start="1"><li>b</li></ol></li><li>c</li></ul>',
    "> a\n> b": "<blockquote><p>a\nb</p></blockquote>",
    "| a | b |\n|---|---|": '<div class="table"><table><thead><tr><th style="--align: left;">a</th>'
    '<th style="--align: left;">b</th></tr></thead><tbody></tbody></table></div>',
    "[a](https://b.c/d)": '<p><a href="https://b.c/d" target="_blank" rel="noopener noreferrer">a</a></p>',
    "[a](https://b.c/d_(e)?f)": '<p><a href="https://b.c/d_(e)?f" target="_blank" rel="noopener noreferrer">a</a></p>',
    "[a](javascript:b)": "<p>[a](javascript:b)</p>",
    "<img src=x onerror=b>": "<p>&lt;img src=x onerror=b&gt;</p>",
    "```c++\n<b>\n": '<div class="code"><div class="code-head"><span>c++</span>'
    '<button type="button" class="quiet">Copy</button>'
    "</div><pre><code>&lt;b&gt;</code></pre></div>",
    "```py\nif x == 'if':  # if <b>\n    x = 0x1f\n```": '<div class="code"><div class="code-head"><span>py</span>'
    '<button type="button" class="quiet">Copy</button></div><pre><code><span class="word">if</span> x == '
    '<span class="string">\'if\'</span>:  <span class="comment"># if &lt;b&gt;</span>\n    x = '
    '<span class="number">0x1f</span></code></pre></div>',
    "```\nif 1\n```": '<div class="code"><div class="code-head"><span>code</span>'
    '<button type="button" class="quiet">Copy</button></div><pre><code>if 1</code></pre></div>',
    "```text\nif 1\n```": '<div class="code"><div class="code-head"><span>text</span>'
    '<button type="button" class="quiet">Copy</button></div><pre><code>if 1</code></pre></div>',
    "```SQL\n-- 1\n```": '<div class="code"><div class="code-head"><span>SQL</span>'
    '<button type="button" class="quiet">Copy</button></div><pre><code><span class="comment">-- 1</span></code></pre>'
    "</div>",
    "#a\n>b\n-c": "<p>#a</p><blockquote><p>b</p></blockquote><p>-c</p>",
}


CELLS = """(table) => [...table.rows].map((row) => [...row.cells].map((cell) =>
  [cell.tagName, getComputedStyle(cell).textAlign, cell.innerHTML].join(" ")))"""
TABLES = {  # Markdown after a line of text: cells with their kind and alignment
    "|a|b|c|\n|:-|-:|:-:|\n|1|**2**|`x`|": [
        ["TH left a", "TH right b", "TH center c"],
        ["TD left 1", "TD right <strong>2</strong>", "TD center <code>x</code>"],
    ],
    "a | b\n--- | ---\n1 \\| 2 | <b>\n3": [["TH left a", "TH left b"], ["TD left 1 | 2", "TD left &lt;b&gt;"]],
    "| a | b |\n|---|---|\n| 1 |\n| 1 | 2 | 3 |": [
        ["TH left a", "TH left b"],
        ["TD left 1", "TD left "],
        ["TD left 1", "TD left 2"],
    ],
    "| a | b |\n|---|---|\n| 1 | 2 |\n- c | d": [["TH left a", "TH left b"], ["TD left 1", "TD left 2"]],
    "| a | b |\n|---|---|\n> c | d": [["TH left a", "TH left b"]],
}
WIDE = f"{'|a' * 1000}|\n{'|-' * 1000}|\n|\n|"  # of few characters, and thousands of cells
NO_TABLES = [WIDE, "a | b", "| a | b |\n| c | d |", "| a |\n|---|---|", "a\n---"]


def test_tables_have_their_columns_aligned_and_rows_as_long_as_the_head(visit: Visit) -> None:
    visit.choose("mode", "chat")
    show = """async (text) => {
      const { markdown, hasMarkdown } = await import("/playground/text/markdown.js");
      document.getElementById("turns").replaceChildren(...markdown(text));
      return hasMarkdown(text);
    }"""
    for text, cells in TABLES.items():
        assert visit.page.evaluate(show, f"Look:\n{text}\n\nThat is all.")
        assert visit.get("#turns table").evaluate(CELLS) == cells
        assert visit.get("#turns > p").first.inner_text() == "Look:"
        assert visit.get("#turns > p").last.inner_text().endswith("That is all.")
    for text in NO_TABLES:
        visit.page.evaluate(show, text)
        expect(visit.get("#turns table")).to_have_count(0)
        assert visit.get("#turns").inner_text().split() == text.split()


def test_markdown_becomes_nodes_and_nothing_else_does(visit: Visit) -> None:
    for text, expected in CASES.items():
        assert visit.page.evaluate(RENDER, text)[1] == expected
    marked = [text for text in CASES if visit.page.evaluate(RENDER, text)[0]]
    assert not {"one\n\ntwo", "1 * 2 * 3", "<img src=x onerror=b>"} & set(marked)
    assert {"# A\n### B", "- a\n- b\n  more\n\nc", "| a | b |\n|---|---|"} <= set(marked)
    expect(visit.get("#failure")).to_be_hidden()


def test_long_answers_of_few_kinds_of_characters_are_rendered(visit: Visit) -> None:
    """Search for marks within lines: over line ends it took years for the first of these texts."""
    assert not visit.page.evaluate(RENDER, "a\n--\n| b")[0]
    for text in ("\n" * 20_000, " " * 20_000, "[" * 20_000, "\n- " * 2_000):
        assert visit.page.evaluate(RENDER, f"a{text}b")[1].count("<p>a") == 1
    for text in (">" * 20_000, "> " * 20_000):
        assert visit.page.evaluate(RENDER, text + "a")[1].count("<blockquote>") == MAX_DEPTH
    for text in ('"' * 19_999, "/*" * 10_000, "`\\" * 10_000, '"""' * 6_667):
        assert text in visit.page.evaluate(TEXT_OF, f"```js\n{text}")[1]


@pytest.mark.timeout(60)
def test_the_time_for_links_that_are_not_closed_grows_with_their_length_only(visit: Visit) -> None:
    """Quadratic time would be minutes for these."""
    for opened in ("[a](https://", "[a](https://(", "[a](https://()", "[a](https://b"):
        assert opened in visit.page.evaluate(TEXT_OF, opened * 50_000)[1]


def test_texts_of_very_many_nodes_are_rendered_and_a_long_string_ends_at_its_quote(visit: Visit) -> None:
    many = 40_000
    assert visit.page.evaluate(RENDER, "`a` " * many)[1].count("<code>") == many
    assert visit.page.evaluate(RENDER, "> " + "`a` " * many)[1].count("<code>") == many
    assert visit.page.evaluate(RENDER, "```py\n" + "1 " * many)[1].count('"number"') == many
    for length in (10, 998, 999, 1000, 1001, 5000):
        long = f"'{'a' * length}'"
        shown = visit.page.evaluate(RENDER, f"```js\n{long} + if + 'b'")[1]
        assert f'<span class="string">{long}</span> + <span class="word">if</span> + <span' in shown, length


def test_an_element_takes_no_text_to_be_parsed(visit: Visit) -> None:
    make = """async ([tag, name]) => {
      const { element } = await import("/playground/dom.js");
      try {
        element(tag, { [name]: "<b>" });
      } catch (error) {
        return error.constructor.name;
      }
      return "made";
    }"""
    for tag, name in (("p", "innerHTML"), ("p", "outerHTML"), ("iframe", "srcdoc")):
        assert visit.page.evaluate(make, [tag, name]) == "TypeError"
    assert visit.page.evaluate(make, ["label", "htmlFor"]) == "made"
