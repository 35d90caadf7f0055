"""An endpoint picker for tests: Envoy's external processing over gRPC, as llm-d's picker speaks it.

The messages are those parts of envoy/service/ext_proc/v3/external_processor.proto and envoy/config/core/v3/base.proto
that are used here, with the numbers of their fields there.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

DESTINATION = "x-gateway-destination-endpoint"
OVERWRITE_IF_EXISTS_OR_ADD = 2
MAX_STREAMS = 32  # requests at once
TYPES = {"string": 9, "bytes": 12, "bool": 8, "int32": 5}  # FieldDescriptorProto.Type; others are messages
MESSAGE = 11
MESSAGES = {
    "HeaderValue": "key=1:string value=2:string raw_value=3:bytes",
    "HeaderMap": "headers=1:*HeaderValue",
    "HttpHeaders": "headers=1:HeaderMap end_of_stream=3:bool",
    "HttpBody": "body=1:bytes end_of_stream=2:bool",
    "HttpTrailers": "trailers=1:HeaderMap",
    "ProcessingRequest": "request_headers=2:HttpHeaders response_headers=3:HttpHeaders request_body=4:HttpBody "
    "response_body=5:HttpBody request_trailers=6:HttpTrailers response_trailers=7:HttpTrailers",
    "HeaderValueOption": "header=1:HeaderValue append_action=3:int32",
    "HeaderMutation": "set_headers=1:*HeaderValueOption",
    "StreamedBodyResponse": "body=1:bytes end_of_stream=2:bool",
    "BodyMutation": "streamed_response=3:StreamedBodyResponse",
    "CommonResponse": "header_mutation=2:HeaderMutation body_mutation=3:BodyMutation",
    "HeadersResponse": "response=1:CommonResponse",
    "BodyResponse": "response=1:CommonResponse",
    "TrailersResponse": "header_mutation=1:HeaderMutation",
    "ProcessingResponse": "request_headers=1:HeadersResponse response_headers=2:HeadersResponse "
    "request_body=3:BodyResponse response_body=4:BodyResponse request_trailers=5:TrailersResponse "
    "response_trailers=6:TrailersResponse",
}


def _message_classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="ext_proc_of_tests.proto", package="of_tests", syntax="proto3")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for text in fields.split():
            field_name, _, kind = text.partition(":")
            field_name, _, number = field_name.partition("=")
            label = 3 if kind.startswith("*") else 1  # repeated or not
            added = message.field.add(name=field_name, number=int(number), label=label)
            added.type = TYPES.get(kind, MESSAGE)
            if added.type == MESSAGE:
                added.type_name = f".of_tests.{kind.lstrip('*')}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"of_tests.{name}"))  # type: ignore[no-untyped-call]
        for name in MESSAGES
    }


M = _message_classes()


@dataclass
class EndpointPicker:
    """Chooses the endpoint of each request by a function of the test, and keeps what Envoy sent."""

    pick: Callable[[Mapping[str, str], bytes], str]  # (headers, body) -> "127.0.0.1:PORT"
    port: int = 0
    bodies: list[bytes] = field(default_factory=list)

    def process(self, messages: Iterator[bytes], context: object) -> Iterator[bytes]:
        """Answer the messages about one request and its response, which pass unchanged."""
        headers: dict[str, str] = {}
        body = b""
        for content in messages:
            request = M["ProcessingRequest"].FromString(content)
            [(part, value)] = [(found.name, value) for found, value in request.ListFields()]
            if part == "request_headers":
                headers = {h.key: h.value or h.raw_value.decode() for h in value.headers.headers}
                answers = [self._picked(headers, body)] if value.end_of_stream else []
            elif part == "request_body":
                body += value.body
                answers = [self._picked(headers, body), _unchanged_body(part, body)] if value.end_of_stream else []
            elif part == "response_body":
                answers = [_unchanged_body(part, value.body, is_last=value.end_of_stream)]
            else:
                answers = [M["ProcessingResponse"](**{part: {}})]
            yield from (answer.SerializeToString() for answer in answers)

    def _picked(self, headers: Mapping[str, str], body: bytes) -> Any:
        self.bodies.append(body)
        header = {"key": DESTINATION, "raw_value": self.pick(headers, body).encode()}
        option = {"header": header, "append_action": OVERWRITE_IF_EXISTS_OR_ADD}
        response = {"response": {"header_mutation": {"set_headers": [option]}}}
        return M["ProcessingResponse"](request_headers=response)


def _unchanged_body(part: str, body: bytes, *, is_last: bool = True) -> Any:
    streamed = {"body": body, "end_of_stream": is_last}
    return M["ProcessingResponse"](**{part: {"response": {"body_mutation": {"streamed_response": streamed}}}})


@contextmanager
def running_picker(pick: Callable[[Mapping[str, str], bytes], str]) -> Iterator[EndpointPicker]:
    """Run a picker at a free port of loopback."""
    picker = EndpointPicker(pick)
    handler = grpc.stream_stream_rpc_method_handler(picker.process)
    service = grpc.method_handlers_generic_handler("envoy.service.ext_proc.v3.ExternalProcessor", {"Process": handler})
    server = grpc.server(ThreadPoolExecutor(MAX_STREAMS), handlers=[service])
    picker.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield picker
    finally:
        server.stop(None).wait()
