"""Request models of all endpoints, each field with its range.

validation.py defines the codes and paths of errors; server/generation/sampling_params.py defines what the sampling
fields mean to the engine.
"""

from server.schemas.adapters import LoadAdapterRequest, UnloadAdapterRequest
from server.schemas.batches import CreateBatchRequest
from server.schemas.chat import ChatCompletionRequest
from server.schemas.completion import CompletionRequest
from server.schemas.conversation import ChatMessage, Conversation
from server.schemas.embeddings import EmbeddingRequest, RerankRequest, ScoreRequest
from server.schemas.generation import GenerationRequest, StreamOptions
from server.schemas.messages_api.request import CountTokensRequest, MessagesRequest
from server.schemas.ollama_api.request import (
    OllamaChatRequest,
    OllamaEmbeddingsRequest,
    OllamaEmbedRequest,
    OllamaGenerateRequest,
    OllamaShowRequest,
)
from server.schemas.responses_api.request import ResponsesRequest
from server.schemas.tokenize import DetokenizeRequest, TokenizeRequest
from server.schemas.translated import TranslatedRequest
from server.schemas.validation import unknown_fields, validate

__all__ = [
    "ChatCompletionRequest",
    "ChatMessage",
    "CompletionRequest",
    "Conversation",
    "CountTokensRequest",
    "CreateBatchRequest",
    "DetokenizeRequest",
    "EmbeddingRequest",
    "GenerationRequest",
    "LoadAdapterRequest",
    "MessagesRequest",
    "OllamaChatRequest",
    "OllamaEmbedRequest",
    "OllamaEmbeddingsRequest",
    "OllamaGenerateRequest",
    "OllamaShowRequest",
    "RerankRequest",
    "ResponsesRequest",
    "ScoreRequest",
    "StreamOptions",
    "TokenizeRequest",
    "TranslatedRequest",
    "UnloadAdapterRequest",
    "unknown_fields",
    "validate",
]
