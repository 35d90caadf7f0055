"""The groups of operations in the API's description, in the order in which people look for them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """A group: its name, a sentence about it, and the paths that belong to it, with all paths below them."""

    name: str
    description: str
    paths: tuple[str, ...]

    def has(self, path: str) -> bool:
        """Return whether a path belongs to this group: /v1/files has /v1/files/{file_id}."""
        return any(path == own or path.startswith(f"{own}/") for own in self.paths)


GROUPS = (
    Group(
        "Generation",
        "Continue texts and answer conversations, in the forms of OpenAI's and Anthropic's APIs.",
        ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"),
    ),
    Group(
        "Ollama",
        "The same for clients of Ollama's API: chats, texts and vectors, and what is served.",
        ("/api",),
    ),
    Group("Embeddings", "Turn texts into vectors and compare them.", ("/v1/embeddings", "/v1/score", "/v1/rerank")),
    Group(
        "Model and tokenizer",
        "Ask what is served, and turn text into token ids and back.",
        ("/v1/models", "/tokenize", "/detokenize", "/tokenizer_info"),
    ),
    Group(
        "Files and batches",
        "Answer files of requests. Needs --batch-dir; without it these URLs answer 404.",
        ("/v1/files", "/v1/batches"),
    ),
    Group(
        "LoRA adapters",
        "Load and unload adapters while the server runs. Needs --enable-runtime-lora; without it they answer 404.",
        ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"),
    ),
    Group("Experts", "See which experts computed how many tokens.", ("/experts",)),
    Group(
        "Health and load",
        "Watch the server. For probes, routers and Prometheus.",
        ("/health", "/ping", "/load", "/metrics", "/version"),
    ),
    Group(
        "Pages", "Pages for people, and this description for programs.", ("/docs", "/openapi.json", "/", "/playground")
    ),
)


def group_of(path: str) -> Group:
    """Return the group of a path. Raises ValueError for a path without one."""
    for group in GROUPS:
        if group.has(path):
            return group
    raise ValueError(f"{path} belongs to no group of server/api/openapi/groups.py")
