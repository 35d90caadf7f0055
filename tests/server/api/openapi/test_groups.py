"""server/api/openapi/groups.py: every operation is in one group, and no group is empty."""

import pytest

from server.api.app import ROUTES
from server.api.openapi import Facts, document
from server.api.openapi.groups import GROUPS, group_of

DOCUMENT = document(ROUTES, Facts(()), "1")


def test_every_operation_is_in_one_group_and_no_group_is_empty() -> None:
    found = {path: [group.name for group in GROUPS if group.has(path)] for path in DOCUMENT["paths"]}
    assert {path: names for path, names in found.items() if len(names) != 1} == {}
    assert {names[0] for names in found.values()} == {group.name for group in GROUPS}
    assert [tag["name"] for tag in DOCUMENT["tags"]] == [group.name for group in GROUPS]
    for path, methods in DOCUMENT["paths"].items():
        assert all(operation["tags"] == found[path] for operation in methods.values())


def test_a_path_belongs_to_the_group_of_the_path_above_it() -> None:
    assert group_of("/v1/files/{file_id}/content").name == "Files and batches"
    with pytest.raises(ValueError, match=r"groups\.py"):
        group_of("/v1/filesystem")
