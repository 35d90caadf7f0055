"""server/api/openapi/operations.py: the arguments that describe a route."""

from server.api.openapi.operations import ANYWHERE, describe, describe_health
from server.schemas import DetokenizeRequest

REPLY = {"type": "object"}


def test_a_route_has_its_own_statuses_and_those_of_every_route() -> None:
    described = describe("Do it.", REPLY, statuses=(304, 404), request=DetokenizeRequest, is_streamed=True)
    assert list(described["responses"]) == [200, 304, *sorted({*ANYWHERE, 404})]
    assert set(described["responses"][200]["content"]) == {"application/json", "text/event-stream"}
    assert "content" not in described["responses"][304]
    body = described["openapi_extra"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/DetokenizeRequest"}


def test_a_health_route_has_one_schema_for_both_states() -> None:
    responses = describe_health("Report.", REPLY)["responses"]
    assert responses[503]["content"] == responses[200]["content"] == {"application/json": {"schema": REPLY}}
