"""server/api/openapi/page.py: contents by group, bodies with their fields, links between objects, escaped text."""

from typing import Any

from server.api.openapi.page import DEFAULT_URL, page

ROW = {"type": "integer", "minimum": 1, "maximum": 8}
BODY = {"application/json": {"schema": {"$ref": "#/components/schemas/X"}, "example": {"n": 3}}}
DOCUMENT: dict[str, Any] = {
    "info": {"title": "a<b", "version": "1", "description": "About & more"},
    "tags": [{"name": "First", "description": "What comes first."}, {"name": "Second", "description": "The rest."}],
    "paths": {
        "/x": {
            "post": {
                "operationId": "post_x",
                "summary": "Do <it>.",
                "tags": ["First"],
                "requestBody": {"content": BODY},
                "responses": {
                    "200": {
                        "description": "Success.",
                        "content": {"application/json": {"schema": {"properties": {"done": {"type": "boolean"}}}}},
                    }
                },
            }
        },
        "/y/{id}": {
            "get": {
                "operationId": "get_y",
                "summary": "See it.",
                "tags": ["Second"],
                "parameters": [
                    {"name": "id", "required": True, "schema": {}, "description": "Its id.", "example": "why"}
                ],
                "responses": {"200": {"description": "Success."}},
            }
        },
    },
    "components": {
        "schemas": {
            "X": {
                "required": ["n"],
                "properties": {
                    "n": {"anyOf": [ROW, {"enum": ["a", None]}]},
                    "any": {},
                    "inner": {"$ref": "#/components/schemas/Y"},
                },
            },
            "Y": {"description": "Part of X.", "properties": {"m": {"type": "string"}}},
        }
    },
}


def test_a_field_shows_its_type_and_bounds_and_a_star_if_required() -> None:
    html = page(DOCUMENT)
    bounds = "at least <code>1</code>, at most <code>8</code>"
    values = "one of <code>&quot;a&quot;</code>, <code>null</code>"
    assert f"<td><code>n</code> *<td>integer, {bounds} or {values}" in html
    assert "<td><code>any</code><td>any value" in html


def test_an_operation_has_the_fields_of_its_body_and_of_its_reply() -> None:
    html = page(DOCUMENT)
    assert "<h3 id='post_x'>POST /x</h3>" in html
    assert "<h4 id='X'>Body: X</h4>" in html and html.count("id='X'") == 1
    assert "<a href='#Y'>Y</a>" in html and "<h3 id='Y'>Y</h3>\n<p>Part of X.</p>" in html
    assert "<code>done</code>" in html


def test_all_text_is_escaped() -> None:
    html = page(DOCUMENT)
    assert "Do &lt;it&gt;." in html and "About &amp; more" in html
    assert "<it>" not in html


def test_the_contents_list_the_operations_by_group_and_in_this_order() -> None:
    contents = page(DOCUMENT).partition("</nav>")[0]
    first, x, second, y = map(contents.index, ("<p>First", "<a href='#post_x'>", "<p>Second", "<a href='#get_y'>"))
    assert first < x < second < y


def test_examples_call_this_server_with_values_in_the_url() -> None:
    html = page(DOCUMENT, "https://here:1")
    assert "curl https://here:1/y/why<" in html and "httpx.get(&quot;https://here:1/y/why&quot;)" in html
    assert "-d &#x27;{&quot;n&quot;: 3}&#x27;" in html
    assert f"curl {DEFAULT_URL}/y/why" in page(DOCUMENT)
