"""Flags and commands of vLLM, llama.cpp and Ollama, with what does the same here."""

from collections.abc import Mapping
from types import MappingProxyType

_CONTEXT = "`--max-model-len N` sets the context"
_DEVICE = "`--device` puts the whole model on the GPU or on the CPU"
_DOWNLOAD = "nothing is downloaded; after `hf download ORG/NAME` the model is ORG/NAME"
_DRAFTS = "`--speculation` guesses from the request's own text, without a draft model"
_IN_REQUESTS = "requests set `max_tokens`; a chat without it has as many as fit"
_KV_TYPE = "`--kv-cache-dtype` sets the type of keys and values"
_LORA = "`--lora NAME=DIR` adds an adapter"
_MODEL = "MODEL is given without a flag"
_NAME = "`--served-model-name` sets the model's name"
_SAMPLING = "`--override-generation-config JSON` sets what requests get that name none"
_NO_TEXTS = "the log never has texts; `--log-level warning` leaves out the lines of requests"
_SEQS = "`--max-num-seqs N` limits the requests in one step; all of them share the KV cache"
_STEP = "`--max-num-batched-tokens N` limits the tokens in one step; longer prompts are divided"
_TEXT_ONLY = "Mixtral reads text only"
_TOOLS = "models with tool tokens need no flag, others `--tool-emulation`"

# Hints about one thing stand together: docs/configuration.md lists flags with the same hint in one line.
FOREIGN_FLAGS: Mapping[str, str] = MappingProxyType(
    {
        "-m": _MODEL,
        "--model": _MODEL,
        "-hf": _DOWNLOAD,
        "--hf-repo": _DOWNLOAD,
        "--download-dir": _DOWNLOAD,
        "-a": _NAME,
        "--alias": _NAME,
        "-c": _CONTEXT,
        "--ctx-size": _CONTEXT,
        "-np": _SEQS,
        "--parallel": _SEQS,
        "-b": _STEP,
        "--batch-size": _STEP,
        "--ubatch-size": _STEP,
        "--enable-chunked-prefill": _STEP,
        "-t": "`--threads N` sets the CPU threads",
        "-ngl": _DEVICE,
        "--n-gpu-layers": _DEVICE,
        "-tp": "`--tensor-parallel-size N` divides the model among processes",
        "--pipeline-parallel-size": "`--tensor-parallel-size N` divides the model among processes",
        "--gpu-memory-utilization": "`--kv-cache-memory-bytes SIZE` sets the size of the KV cache",
        "-ctk": _KV_TYPE,
        "-ctv": _KV_TYPE,
        "--cache-type-k": _KV_TYPE,
        "--cache-type-v": _KV_TYPE,
        "--enable-prefix-caching": "the prefix cache is on unless `--no-enable-prefix-caching` is given",
        "--mlock": "`--weights-memory lock` keeps the weights of a pack in memory",
        "--no-mmap": "`--weights-memory copy` reads a pack into memory; other checkpoints are always read into it",
        "--load-format": "the format is recognized by the files",
        "--tokenizer": "the tokenizer is the checkpoint's own",
        "--trust-remote-code": "code of a checkpoint is never run",
        "-fa": "attention needs no flag",
        "--flash-attn": "attention needs no flag",
        "--rope-freq-base": "`--rope-theta NUMBER` sets the base of the rotary angles",
        "--jinja": "chat templates are always used, without a flag",
        "--enable-auto-tool-choice": _TOOLS,
        "--tool-call-parser": _TOOLS,
        "--reasoning-parser": "Mixtral does not reason",
        "--mmproj": _TEXT_ONLY,
        "--limit-mm-per-prompt": _TEXT_ONLY,
        "--enable-lora": _LORA,
        "--lora-modules": _LORA,
        "--speculative-config": _DRAFTS,
        "--model-draft": _DRAFTS,
        "--temp": _SAMPLING,
        "--top-k": _SAMPLING,
        "--top-p": _SAMPLING,
        "--min-p": _SAMPLING,
        "--repeat-penalty": _SAMPLING,
        "--n-predict": _IN_REQUESTS,
        "--metrics": "`GET /metrics` needs no flag",
        "-v": "`--log-level debug` logs more",
        "--verbose": "`--log-level debug` logs more",
        "--disable-log-requests": _NO_TEXTS,
        "--no-enable-log-requests": _NO_TEXTS,
    }
)
_LIST = "`smoe models` lists the models on this machine"
_PULL = "nothing is downloaded: `hf download ORG/NAME` or `ollama pull NAME`, then `smoe serve` with that name"
# Words after "smoe".
FOREIGN_COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "list": _LIST,
        "ls": _LIST,
        "pull": _PULL,
        "download": _PULL,
        "ps": "`smoe top` shows a running server",
        "show": "`smoe plan MODEL` shows a model's sizes",
        "stop": "Ctrl-C or SIGTERM ends `smoe serve`",
        "help": "`smoe --help` lists the commands",
        "version": "`smoe --version` prints it",
    }
)
