"""Messages on the socket between the API process and the engine process, as tagged msgspec structs.

Each frame is a 4-byte big-endian length and a msgpack body. End of file means that the peer closed the socket or died.
"""

import struct
from typing import Any, Generic, TypeVar

import msgspec

from engine.config import EngineConfig
from engine.types import ExpertReport, Request, RequestOutput, StepOutput, Vocabulary

LENGTH = struct.Struct(">I")


class Start(msgspec.Struct, frozen=True, tag=True):
    """API to engine, first and once: load this model."""

    config: EngineConfig
    vocabulary: Vocabulary | None = None  # None: requests with a grammar are refused


class Add(msgspec.Struct, frozen=True, tag=True):
    """API to engine: requests to queue, in order."""

    requests: list[Request]


class Abort(msgspec.Struct, frozen=True, tag=True):
    """API to engine: end these requests without an output. Unknown and finished ids are ignored."""

    request_ids: list[int]


class Progress(msgspec.Struct, frozen=True, tag=True):
    """Engine to API: progress of loading."""

    phase: str  # "checksums", "weights", "adapters", "kv cache", "GPU kernels", "CUDA graphs", "warm-up"
    loaded_bytes: int  # numbers of adapters, kernels and graphs in the phases of that name
    total_bytes: int


class Ready(msgspec.Struct, frozen=True, tag=True):
    """Engine to API, once: the engine is loaded. The limits are the effective ones."""

    max_model_len: int
    max_prompt_tokens: int  # a longer prompt can never fit the KV pool or the model
    vocab_size: int
    eos_token_ids: list[int]
    num_parameters: int
    weight_bytes: int
    kv_cache_bytes: int
    kv_bytes_per_token: int
    num_blocks: int  # usable blocks, without the null block
    block_size: int
    num_layers: int
    num_experts: int
    experts_per_token: int
    window: int | None
    dtype: str  # of activations, and of weights that are not quantized
    device: str
    backend: str
    fingerprint: str  # names numerics and weights: equal fingerprints, equal bits where the backend promises them
    phase_seconds: dict[str, float]
    warnings: list[str] = []
    quantization: str = "none"  # of the weights: none, lossless, int8, int4, fp8, or block formats ("Q4_K+Q6_K")
    dim: int = 0  # of hidden states, and so the length of an embedding
    embeds: bool = False  # the model was trained for embeddings
    generates: bool = True  # False: the checkpoint has no output head
    mapped_bytes: int = 0  # of the weights that are mapped from a pack, so that the system may drop them
    checkpoint_files: str = ""  # digest that changes when a file of the checkpoint is replaced or written
    memory_share: float = 1.0  # of the usual memory for requests: less where the memory limit is too small for it
    adapters: dict[str, str] = {}  # digests of the LoRA adapters by name
    dropped_adapters: dict[str, str] = {}  # why these adapters of the config are not loaded, by name
    expert_slots: int = 0  # experts that fit memory, where the others are read when they are needed


class Failed(msgspec.Struct, frozen=True, tag=True):
    """Engine to API: the engine cannot start, or it ends. The message is one line for the person at the terminal."""

    message: str
    exit_code: int = 1


class PrefillStarted(msgspec.Struct, frozen=True, tag=True):
    """Engine to API, before a step: the step computes the prompts of these requests. If the engine crashes, its cause
    is among the started requests and those whose grammar is being compiled."""

    request_ids: list[int]


class OutputPart(msgspec.Struct, frozen=True, tag=True):
    """Engine to API, before a StepPart or StepDone: the first elements of lists of one of its outputs, which are too
    long for a frame. The output has the rest."""

    output: RequestOutput  # with nothing but these lists


class StepPart(msgspec.Struct, frozen=True, tag=True):
    """Engine to API, before a StepDone: outputs of the same step that are too large for its frame."""

    outputs: list[RequestOutput]


class StepDone(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Engine to API: outputs and gauges of one step."""

    step: StepOutput
    aborted: list[int] = []  # ids of Abort on which the engine works no more; each is named once


class ExpertsQuery(msgspec.Struct, frozen=True, tag=True):
    """API to engine: report the experts' counts of the last `window_s` seconds, or since the start; or reset them."""

    query_id: int
    window_s: float | None = None
    reset: bool = False


class ExpertsReply(msgspec.Struct, frozen=True, tag=True):
    """Engine to API: the answer to ExpertsQuery; empty after a reset."""

    query_id: int
    report: ExpertReport
    engine_s: float = 0.0  # time that the engine took for the report


class LoadAdapter(msgspec.Struct, frozen=True, tag=True):
    """API to engine: load a LoRA adapter. Steps go on meanwhile; AdapterLoaded answers."""

    query_id: int
    name: str
    directory: str


class AdapterLoaded(msgspec.Struct, frozen=True, tag=True):
    """Engine to API: the answer to LoadAdapter. From now on requests may have the adapter."""

    query_id: int
    digest: str = ""
    error: str | None = None  # one line for the operator; the adapter is not loaded


class UnloadAdapter(msgspec.Struct, frozen=True, tag=True):
    """API to engine: free the memory of an adapter. No request has it any more."""

    digest: str


ToEngine = Start | Add | Abort | ExpertsQuery | LoadAdapter | UnloadAdapter
FromEngine = (
    Progress | Ready | Failed | PrefillStarted | OutputPart | StepPart | StepDone | ExpertsReply | AdapterLoaded
)

_encoder = msgspec.msgpack.Encoder()


def encode_frame(message: ToEngine | FromEngine) -> bytes:
    """Encode a message, with its length in front."""
    body = _encoder.encode(message)
    return LENGTH.pack(len(body)) + body


Message = TypeVar("Message", ToEngine, FromEngine)


class FrameReader(Generic[Message]):
    """Decodes a byte stream into the messages of one direction. Keeps an incomplete message until its rest arrives."""

    def __init__(self, message_type: Any) -> None:
        """`message_type` is ToEngine or FromEngine, the unions above."""
        self._decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(message_type)
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> list[Message]:
        """Return the messages completed by `chunk`. Raises msgspec.DecodeError for an invalid body."""
        self._buffer += chunk
        messages: list[Message] = []
        start = 0
        while len(self._buffer) - start >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._buffer, start)
            end = start + LENGTH.size + length
            if len(self._buffer) < end:
                break
            messages.append(self._decode(memoryview(self._buffer)[start + LENGTH.size : end]))
            start = end
        del self._buffer[:start]
        return messages

    def _decode(self, body: memoryview) -> Message:
        try:
            return self._decoder.decode(body)
        except UnicodeDecodeError as error:  # msgspec's, of a message's name that is not UTF-8
            raise msgspec.DecodeError(str(error)) from None
