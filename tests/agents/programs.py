"""The coding agents: how each is configured for a server at a URL, and started for one question."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

MODEL = "smoe-demo"
CONTEXT = 65_536
QUESTION = "Count from 3 to 7."
OUTPUT_TOKENS = 64


@dataclass(frozen=True)
class Agent:
    """One program. `@URL@` in its texts stands for the server's URL, without a path."""

    program: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)  # below the home directory, by path
    set_up: tuple[str, ...] = ()  # arguments of a first start, which writes the configuration


CLAUDE_CODE = Agent(
    "claude",
    ("-p", QUESTION, "--max-turns", "1"),
    {
        "ANTHROPIC_BASE_URL": "@URL@",
        "ANTHROPIC_AUTH_TOKEN": "none",
        "ANTHROPIC_MODEL": MODEL,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": MODEL,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(OUTPUT_TOKENS),
    },
)
CODEX = Agent(
    "codex",
    ("exec", "--skip-git-repo-check", QUESTION),
    files={
        ".codex/config.toml": f"""
model = "{MODEL}"
model_provider = "smoe"
model_context_window = {CONTEXT}

[model_providers.smoe]
name = "smoe"
base_url = "@URL@/v1"
wire_api = "responses"
"""
    },
)
OPENCODE = Agent(
    "opencode",
    ("run", QUESTION),
    {"OPENCODE_DISABLE_MODELS_FETCH": "1", "OPENCODE_DISABLE_AUTOUPDATE": "1"},
    {
        ".config/opencode/opencode.json": json.dumps(
            {
                "model": f"smoe/{MODEL}",
                "small_model": f"smoe/{MODEL}",
                "provider": {
                    "smoe": {
                        "npm": "@ai-sdk/openai-compatible",
                        "options": {"baseURL": "@URL@/v1", "apiKey": "none"},
                        "models": {MODEL: {"limit": {"context": CONTEXT, "output": OUTPUT_TOKENS}}},
                    }
                },
            }
        )
    },
)
QWEN_CODE = Agent(
    "qwen",
    ("--auth-type", "openai", "-p", QUESTION),
    {"OPENAI_BASE_URL": "@URL@/v1", "OPENAI_API_KEY": "none", "OPENAI_MODEL": MODEL},
)
CLINE = Agent(
    "cline",
    ("-P", "openai", "-m", MODEL, "--retries", "1", QUESTION),
    set_up=("auth", "-p", "openai", "-k", "none", "-m", MODEL, "-b", "@URL@/v1"),
)
CONTINUE = Agent(
    "cn",
    ("--config", ".continue/config.yaml", "-p", QUESTION),
    {"CONTINUE_TELEMETRY_ENABLED": "0"},
    {
        ".continue/config.yaml": f"""
name: local
version: 1.0.0
schema: v1
models:
  - name: smoe
    provider: openai
    model: {MODEL}
    apiBase: @URL@/v1
    apiKey: none
    roles: [chat]
    defaultCompletionOptions:
      maxTokens: {OUTPUT_TOKENS}
"""
    },
)
AGENTS = (CLAUDE_CODE, CODEX, OPENCODE, QWEN_CODE, CLINE, CONTINUE)
