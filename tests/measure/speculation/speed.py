"""Time texts with and without drafts, side by side: python -m tests.measure.speculation.speed [--quantization int8]

One model with random weights (bench-400m) computes every step; its sampled tokens are replaced by those of real texts,
so that drafts are right as often as they are with a model that writes these texts. The engines with and without drafts
take turns, in as many rounds as take ten seconds. Prints a line for each text and number of requests: tokens per second
of both and their ratio, from the first token of the last request that finds a place at once to the end of all; the same
in the steps with all places taken; drafted tokens, and how many were right. "off again" is a second engine without
drafts against the first: what two equal engines differ by, a tenth where steps take half a millisecond. Replacing
the tokens, 1 to 3 us a row, is not counted. About 8 minutes on two idle cores.

The texts are parts of this repository's files, so another version of it has others. With one request at a time a single
text is replayed, of which some gain twice as much as others: --replies 12 takes twelve.

Requests that begin together do not end together with drafts: the last ones run beside free places, which those of a
server whose clients come again do not. --replies N has N texts for the places, in turns.

--model PATH takes a checkpoint with the bundled model's tokenizer. --steps prints what the steps did.

"json" replies follow a schema of fields with names of their own; their values are those of the prompt.

--llama-server PATH and --vllm PATH time llama.cpp's and vLLM's lookup beside it (servers.py): some minutes
more. --kinds without a kind times only these.

--cpu-time counts, and lets the engine learn, the CPU time of this process with one thread: for a busy machine. Such
figures are indications only.
"""

import argparse
import json
import random
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from engine.config import EngineConfig
from engine.engine import Engine
from engine.startup.assembly import LoadedModel
from engine.startup.loading import load, load_random
from engine.types import Request, SamplingParams
from model.bench.shapes import PRESETS
from model.sampling_batch import IntParam, SampledRows, SamplingRows
from server.structured_output.constraints import schema_constraint
from server.tokenizer.tokenizer import load_tokenizer
from tests.measure.speculation.servers import compare_servers
from tests.measure.speculation.steps import StepLog
from tests.support.paths import DEMO, ROOT

PROMPT_TOKENS, REPLY_TOKENS = 600, 240
NUM_ROUNDS, MIN_SECONDS = 3, 10.0  # rounds at least, and time of all rounds of an engine at least
KINDS = ("edit", "records", "json", "code", "prose")
MODES = ("off", "auto", "off")  # of the engines
SEED, NUM_TOKENS, HISTORY_ROW = int(IntParam.SEED), int(IntParam.NUM_TOKENS), int(IntParam.HISTORY_ROW)  # faster

NAMES = ("Ada", "Grace", "Alan", "Edsger", "Barbara", "Donald")
COUNTRIES = ("Norway", "Peru", "France")
FIELDS = {  # names of the fields of "json", and their types
    "invoice_number": "integer",
    "customer_name": "string",
    "customer_age": "integer",
    "billing_country": "enum",
    "shipping_country": "enum",
    "is_paid": "boolean",
    "payment_method": "string",
    "total_amount": "integer",
    "discount_percent": "integer",
    "tax_amount": "integer",
    "is_gift": "boolean",
    "warehouse": "string",
    "delivery_company": "string",
    "delivery_days": "integer",
    "needs_signature": "boolean",
    "contact_person": "string",
    "telephone": "integer",
    "order_number": "integer",
    "number_of_items": "integer",
    "weight_in_grams": "integer",
    "was_returned": "boolean",
    "return_reason": "string",
    "sales_region": "enum",
    "account_manager": "string",
    "newsletter": "boolean",
    "loyalty_points": "integer",
    "previous_orders": "integer",
    "language": "string",
    "currency": "string",
    "notes": "string",
}

Clock = Callable[[], float]


@dataclass(frozen=True)
class Text:
    """A prompt and the reply to it, as token ids."""

    prompt: list[int]
    reply: list[int]
    grammar: str | None = None  # of the reply


class ReplayedOps:
    """Ops whose sampled tokens are those of the texts: of the text with the row's seed as its number. In a loop over
    views that are kept with the rows: steps of a small model take half a millisecond, and calls of torch and numpy
    behind the network up to 60 us. `seconds`: what replacing took, which no server does."""

    def __init__(self, ops: Any, texts: list[Text], clock: Clock = time.perf_counter) -> None:
        self.seconds = 0.0
        self._clock = clock
        self._ops = ops
        self._texts = texts
        self._views: WeakKeyDictionary[SamplingRows, tuple[SampledRows, list[Any]]] = WeakKeyDictionary()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def sample(self, logits: Tensor, rows: SamplingRows) -> SampledRows:
        sampled: SampledRows = self._ops.sample(logits, rows)
        start_s = self._clock()
        self._replace(sampled, rows)
        self.seconds += self._clock() - start_s
        return sampled

    def _replace(self, sampled: SampledRows, rows: SamplingRows) -> None:
        of_rows, views = self._views.get(rows, (None, []))
        if of_rows is not sampled:
            views = [memoryview(tensor.numpy()) for tensor in (rows.int_params, sampled.token_ids, rows.history)]
            self._views[rows] = sampled, views
        params, token_ids, history = views
        for row in range(len(token_ids)):
            text, num_tokens = self._texts[params[row, SEED]], params[row, NUM_TOKENS]
            token_ids[row] = text.reply[num_tokens - len(text.prompt)]
            history[params[row, HISTORY_ROW], num_tokens] = token_ids[row]


def make_texts(kind: str, count: int) -> list[Text]:
    """Return texts of one kind, each other than the others."""
    if kind == "json":
        return [_json_text(random.Random(f"json {number}")) for number in range(count)]
    encode = load_tokenizer(DEMO).encode
    texts = []
    for number, (prompt, reply) in zip(range(count), _pairs(kind), strict=False):
        ids = encode(prompt)[-PROMPT_TOKENS:]
        texts.append(Text(ids, (encode(reply, add_special_tokens=False) * 9)[:REPLY_TOKENS]))
        assert len(texts) == number + 1
    return texts


def _pairs(kind: str) -> Iterator[tuple[str, str]]:
    """Yield prompts and replies: a file and its changed version, records, code and prose of this repository."""
    rng = random.Random(kind)
    suffix = "md" if kind == "prose" else "py"
    files = sorted((ROOT / ("docs/decisions" if kind == "prose" else "engine")).rglob(f"*.{suffix}"))
    long = [text for path in files if len(text := path.read_text()) > 3600]
    while True:
        text = rng.choice(long)
        if kind == "edit":
            yield text[:1500], _changed(rng, text[:1500])
        elif kind == "records":
            records = [json.dumps(_record(rng, number), indent=1) for number in range(40)]
            yield "\n".join(records[:8]), "\n".join(records[8:])
        else:
            yield text[:1600], text[1600:]


def _changed(rng: random.Random, text: str) -> str:
    """Rename one word and write every twelfth line anew."""
    words = sorted({word for word in text.split() if word.isidentifier() and len(word) > 4})
    lines = [line.replace(rng.choice(words), "renamed_value") for line in text.splitlines()]
    return "\n".join(f"    # {line[::-1]}" if rng.random() < 1 / 12 else line for line in lines)


def _record(rng: random.Random, number: int) -> dict[str, object]:
    city = rng.choice(("Paris", "Oslo", "Lima"))
    return {
        "id": number,
        "name": rng.choice(NAMES),
        "age": rng.randint(20, 80),
        "city": city,
        "active": rng.random() < 0.7,
    }


def _json_text(rng: random.Random) -> Text:
    """Return a letter, and its fields as JSON under a closed schema."""
    values = {name: _json_value(rng, kind) for name, kind in FIELDS.items()}
    letter = ". ".join(
        f"The {name.replace('_', ' ')} is {value}" for name, value in rng.sample(list(values.items()), 30)
    )
    types: dict[str, dict[str, object]] = {"enum": {"enum": list(COUNTRIES)}}
    properties = {name: types.get(kind, {"type": kind}) for name, kind in FIELDS.items()}
    schema = {"type": "object", "properties": properties, "required": list(FIELDS), "additionalProperties": False}
    constraint = schema_constraint(schema, "schema")
    tokenizer = load_tokenizer(DEMO)
    line_break = tokenizer.encode("\n", add_special_tokens=False)
    reply = tokenizer.encode("\n" + json.dumps(values, separators=(",", ":")), add_special_tokens=False)
    return Text(
        tokenizer.encode(letter)[-PROMPT_TOKENS:],
        reply[len(line_break) :][:REPLY_TOKENS],
        constraint.grammar,
    )


def _json_value(rng: random.Random, kind: str) -> str | int | bool:
    if kind == "string":
        return f"{rng.choice(NAMES)} {rng.choice(NAMES)}"
    if kind == "enum":
        return rng.choice(COUNTRIES)
    return rng.random() < 0.5 if kind == "boolean" else rng.randint(1, 9999)


@dataclass
class Pace:
    """Tokens and the time that they took."""

    tokens: int = 0
    seconds: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)


@dataclass
class Run:
    """One run of all texts."""

    whole: Pace
    full: Pace  # of the steps after which no place was free
    drafted: int = 0
    accepted: int = 0


def run_texts(engine: Engine, texts: list[Text], first_id: int, clock: Clock) -> Run:
    """Generate all replies, as many at a time as the engine has places. Times count from the first token of the last
    request that finds a place at once."""
    num_places = min(engine.config.max_num_seqs, len(texts))
    for number, text in enumerate(texts):
        params = SamplingParams(max_tokens=len(text.reply), ignore_eos=True, temperature=0.0, seed=number)
        engine.add(Request(first_id + number, text.prompt, params, grammar=text.grammar))
    started: set[int] = set()
    run = Run(Pace(), Pace())
    while engine.has_work():
        start_s, is_counted = clock(), len(started) >= num_places
        step = engine.step()
        seconds = clock() - start_s
        for output in step.outputs:
            if output.error:
                raise SystemExit(f"a request ended: {output.error}")
            started.add(output.request_id)
        if is_counted:
            for pace in (run.whole, run.full) if step.stats.num_running == num_places else (run.whole,):
                pace.tokens += step.stats.num_generated_tokens
                pace.seconds += seconds
            run.drafted += step.stats.num_drafted_tokens
            run.accepted += step.stats.num_accepted_tokens
    return run


def compare(loaded: LoadedModel, config: EngineConfig, kind: str, count: int, clock: Clock, options: Namespace) -> None:
    """Print the line of one kind of text and number of requests at a time."""
    texts = make_texts(kind, max(count, options.replies or 0))
    loaded.runner.sampler._ops = replayed = ReplayedOps(loaded.runner.model.ops, texts, clock)

    def engine_clock() -> float:
        return clock() - replayed.seconds

    vocabulary = load_tokenizer(DEMO).vocabulary()
    engines = [Engine(_with(config, mode, count), loaded, vocabulary, engine_clock) for mode in MODES]
    runs: list[list[Run]] = [[] for _ in engines]
    logs = []
    number = 0
    while number <= options.rounds or sum(run.whole.seconds for run in runs[0]) < MIN_SECONDS:
        if number == 1 and options.steps:
            logs = [StepLog(engine) for engine in engines[:2]]
        for place in range(number, number + len(engines)):  # each is the first one in turn
            engine, own_runs = engines[place % len(engines)], runs[place % len(engines)]
            run = run_texts(engine, texts, number * len(texts), engine_clock)
            if number:  # the first round fills the prefix cache
                own_runs.append(run)
        number += 1
    off, auto, again = (statistics.median(run.whole.tokens_per_s for run in of_engine) for of_engine in runs)
    full = [statistics.median(run.full.tokens_per_s for run in of_engine) or float("nan") for of_engine in runs]
    drafted, accepted = (sum(getattr(run, name) for run in runs[1]) for name in ("drafted", "accepted"))
    sys.stdout.write(
        f"{kind:8s} {count:3d} requests: {off:7.1f} tok/s off, {auto:7.1f} auto, {2 * auto / (off + again):5.2f} x; "
        f"off again {again / off:5.2f} x; all places taken {2 * full[1] / (full[0] + full[2]):5.2f} x, "
        f"off again {full[2] / full[0]:5.2f} x; {drafted} drafted, {accepted} right\n"
    )
    sys.stdout.flush()
    for log in logs:
        log.print()


def _with(config: EngineConfig, mode: str, num_places: int) -> EngineConfig:
    fields = {name: getattr(config, name) for name in config.__struct_fields__}
    return EngineConfig(**fields | {"speculation": mode, "max_num_seqs": num_places})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.measure.speculation.speed")
    parser.add_argument("--preset", default="bench-400m", choices=["bench-400m", "tiny"])
    parser.add_argument("--quantization", default="none", choices=["none", "lossless", "int8", "int4"])
    parser.add_argument("--model", type=Path, help="checkpoint instead of the preset")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 16], help="at a time (default: 1 16)")
    parser.add_argument("--replies", type=int, help="in all (default: as many as requests)")
    parser.add_argument("--kinds", nargs="*", default=KINDS, choices=KINDS)
    parser.add_argument(
        "--rounds",
        type=int,
        default=NUM_ROUNDS,
        help=f"at least; as many as take {MIN_SECONDS:g} s (default: %(default)s)",
    )
    parser.add_argument("--threads", type=int, help="default: one for each core")
    parser.add_argument("--steps", action="store_true", help="print what the steps did (steps.py)")
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--llama-server", type=Path, metavar="PATH", help="program of llama.cpp to time beside it")
    parser.add_argument("--vllm", type=Path, metavar="PATH", help="program of vLLM to time beside it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    clock = time.process_time if options.cpu_time else time.perf_counter
    shape = PRESETS[options.preset]
    config = EngineConfig(
        model=str(options.model or ""),
        quantization=options.quantization,
        threads=1 if options.cpu_time else options.threads,
        max_model_len=PROMPT_TOKENS + REPLY_TOKENS + 8,
        max_num_batched_tokens=512,
    )
    loaded = load(config, lambda phase, done, total: None) if options.model else load_random(config, shape)
    for count in options.requests:
        for kind in options.kinds:
            compare(loaded, config, kind, count, clock, options)
    if options.llama_server or options.vllm:
        compare_servers(options.llama_server, options.vllm, options.threads)


if __name__ == "__main__":
    main()
