"""server/http/tenant_of_head.py: whose request a head belongs to, by its API key."""

import pytest

from server.http.tenant_of_head import tenant_finder

HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n%s\r\ncontent-length: 2\r\n\r\n{}"


@pytest.mark.parametrize(
    ("line", "tenant"),
    [
        (b"authorization: Bearer red", 0),
        (b"Authorization:bearer  blue ", 1),
        (b"X-API-Key: blue", 1),
        (b"authorization: Bearer green", None),
        (b"authorization: Basic red", None),
        (b"x-authorization: Bearer red", None),
        (b"authorization: Bearer re", None),
        (b"accept: */*", None),
        (b"authorization: Bearer \xff\x00", None),
    ],
)
def test_the_tenant_is_the_index_of_the_key(line: bytes, tenant: int | None) -> None:
    assert tenant_finder(["red", "blue"])(HEAD % line) == tenant


def test_a_key_that_is_cut_off_is_no_other_key() -> None:
    head = HEAD % b"authorization: Bearer blue"
    find = tenant_finder(["blu", "blue"])
    assert {find(head[:length]) for length in range(head.index(b"blue") + 5)} == {None}
    assert find(head) == 1


@pytest.mark.parametrize("keys", [[], ["red"]])
def test_without_two_keys_there_are_no_turns(keys: list[str]) -> None:
    assert tenant_finder(keys)(HEAD % b"authorization: Bearer red") is None
