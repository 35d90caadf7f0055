"""server/api/openapi/page.py: types in words, links between objects, escaped text."""

from server.api.openapi.page import page

ROW = {"type": "integer", "minimum": 1, "maximum": 8}
DOCUMENT = {
    "info": {"title": "a<b", "version": "1", "description": "About & more"},
    "paths": {
        "/x": {
            "post": {
                "operationId": "post_x",
                "summary": "Do <it>.",
                "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/X"}}}},
                "responses": {"200": {"description": "Success."}},
            }
        }
    },
    "components": {
        "schemas": {"X": {"required": ["n"], "properties": {"n": {"anyOf": [ROW, {"enum": ["a", None]}]}, "any": {}}}}
    },
}


def test_a_field_shows_its_type_and_bounds_and_a_star_if_required() -> None:
    html = page(DOCUMENT)
    bounds = "at least <code>1</code>, at most <code>8</code>"
    values = "one of <code>&#x27;a&#x27;</code>, <code>None</code>"
    assert f"<td><code>n</code> *<td>integer, {bounds} or {values}" in html
    assert "<td><code>any</code><td>any value" in html


def test_bodies_link_to_their_objects_and_all_text_is_escaped() -> None:
    html = page(DOCUMENT)
    assert "<h2 id='post_x'>POST /x</h2>" in html
    assert "<p>Body: <a href='#X'>X</a></p>" in html and "<h2 id='X'>X</h2>" in html
    assert "Do &lt;it&gt;." in html and "About &amp; more" in html
    assert "<it>" not in html
