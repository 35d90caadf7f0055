"""server/api/formats/json_pieces.py: JSON whose long lists are pieces of their own."""

import orjson
import pytest

from server.api.formats.json_pieces import JsonList, in_pieces, joined


def test_the_pieces_are_the_json_and_those_of_a_list_are_not_copied() -> None:
    several, none = JsonList([1, "\0"]), JsonList()
    several.add([{"a": 2}])
    several.extend(JsonList([3]))
    several.extend(none)
    value = {"text": "\0", "several": several, "none": none, "again": [several]}
    plain = [1, "\0", {"a": 2}, 3]
    expected = orjson.dumps({"text": "\0", "several": plain, "none": [], "again": [plain]})
    pieces = in_pieces(value)
    assert b"".join(pieces) == orjson.dumps(value, joined) == expected
    assert [sum(piece is other for other in pieces) for piece in several.pieces] == [2, 2, 2]


def test_other_objects_are_no_json() -> None:
    for render in (in_pieces, lambda value: orjson.dumps(value, joined)):
        with pytest.raises(TypeError):
            render({"a": object()})
