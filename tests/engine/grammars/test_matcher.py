"""Token masks against a naive oracle, and grammars in the engine: a failing one ends only its own request."""

import random
import re
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import llguidance
import pytest
import torch

from engine.config import EngineConfig
from engine.engine import Engine
from engine.errors import GrammarError
from engine.grammars import matcher as matcher_module
from engine.grammars.mask_budget import MaskBudget
from engine.grammars.matcher import BuiltGrammar, GrammarCompiler, GrammarMatcher
from engine.token_constraints import token_constraints
from engine.types import Request, RequestOutput, SamplingParams, Vocabulary
from server.tokenizer.tokenizer import Tokenizer, load_tokenizer
from tests.support.paths import DEMO

EOS = 2


def serialized(lark: str) -> str:
    """Return the grammar in the form that the server sends."""
    grammar: str = llguidance.LLMatcher.grammar_from_lark(f'{lark}\n%llguidance {{"no_forcing": true}}\n')
    return grammar


ANSWER = serialized("start: /(yes|no), [0-9]{2,4}!/")
DEAD_END = serialized('start: %json {"$ref": "#"}')


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(DEMO)


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return tokenizer.vocabulary()


@pytest.fixture(scope="module")
def compiler(vocabulary: Vocabulary) -> GrammarCompiler:
    return GrammarCompiler(vocabulary, len(vocabulary.tokens) + 5, (EOS,))


def engine_with(vocabulary: Vocabulary | None, **settings: object) -> Engine:
    torch.set_num_threads(1)
    config = EngineConfig(
        model=str(DEMO), dtype="float32", threads=1, max_num_batched_tokens=64, check_integrity=True, **settings
    )  # type: ignore[arg-type]
    return Engine.load(config, vocabulary=vocabulary)


def run(engine: Engine, requests: list[Request]) -> dict[int, tuple[list[int], str | None]]:
    """Run the requests to their ends; return token ids and error by request id."""
    outputs: list[RequestOutput] = []
    for request in requests:
        engine.add(request)
    while engine.has_work():
        outputs += engine.step().outputs
    ended = {o.request_id: o.error for o in outputs if o.finish_reason}
    return {i: ([t for o in outputs if o.request_id == i for t in o.token_ids], error) for i, error in ended.items()}


def run_alone(engine: Engine, requests: list[Request]) -> dict[int, tuple[list[int], str | None]]:
    """Run each request when the one before it has ended. Their prompts share no block, so none finds a prefix."""
    ends: dict[int, tuple[list[int], str | None]] = {}
    for request in requests:
        ends |= run(engine, [request])
    return ends


def make_request(request_id: int, grammar: str | None, seed: int = 0, **params: object) -> Request:
    prompt = [1, *range(300 + request_id, 320 + request_id)]
    sampling = SamplingParams(**{"max_tokens": 24, "seed": seed, **params})  # type: ignore[arg-type]
    return Request(request_id, prompt, sampling, grammar=grammar)


def bits(mask: bytes) -> set[int]:
    return {i for i in range(8 * len(mask)) if mask[i // 8] >> i % 8 & 1}


def test_a_mask_has_exactly_the_tokens_that_the_pattern_allows_next(
    compiler: GrammarCompiler, vocabulary: Vocabulary
) -> None:
    first, second = "[a-d]{2,3}", "[x-z]{1,2}"
    grammar = serialized(f"start: /{first}{second}/")
    prefixes = {a + b for a in all_texts("abcd", 2, 3) for b in all_texts("xyz", 1, 2)}
    words = {i: token.decode("latin-1") for i, token in enumerate(vocabulary.tokens) if token}
    matcher = compiler.matcher(grammar)
    generated: list[int] = []
    rng = random.Random(0)
    while True:
        mask = bits(matcher.bitmask(generated, 0))
        text = "".join(words[i] for i in generated)
        open_texts = {full[len(text) :] for full in prefixes if full.startswith(text)}
        expected = {
            i
            for i, word in words.items()
            if i not in vocabulary.special_ids and any(rest.startswith(word) for rest in open_texts)
        }
        assert mask - {EOS} == expected
        assert (EOS in mask) == (re.fullmatch(first + second, text) is not None)
        if not expected:
            break
        generated.append(rng.choice(sorted(expected)))


def test_a_grammar_that_reads_a_text_in_many_ways_ends_before_its_masks_take_long(
    compiler: GrammarCompiler, vocabulary: Vocabulary
) -> None:
    """The time of a mask grows with the cube of such a text: of 150 letters it is 10 ms, of 900 two seconds."""
    letters = [i for i, token in enumerate(vocabulary.tokens) if len(token) == 1 and token.islower()]
    matcher = compiler.matcher(serialized("start: s\ns: s s | /[a-z ]/"))
    generated: list[int] = []
    with suppress(GrammarError):
        while len(generated) < 260:
            matcher.bitmask(generated, 0)
            generated += letters[:10]
    assert 100 < len(generated) < 260


def all_texts(alphabet: str, low: int, high: int) -> set[str]:
    texts, longest = set(), [""]
    for length in range(1, high + 1):
        longest = [text + character for text in longest for character in alphabet]
        texts |= set(longest) if length >= low else set()
    return texts


def test_a_mask_depends_only_on_the_tokens_and_not_on_the_calls_before(compiler: GrammarCompiler) -> None:
    prompt, generated = [7, 8, 9], []
    stepwise = compiler.matcher(ANSWER)
    rng = random.Random(1)
    while (mask := stepwise.bitmask(prompt + generated, len(prompt))) and bits(mask) != {EOS}:
        assert compiler.matcher(ANSWER).bitmask(generated, 0) == mask
        assert stepwise.bitmask(prompt + generated, len(prompt)) == mask
        generated.append(rng.choice(sorted(bits(mask))))


def test_a_text_without_alternatives_may_be_written_in_any_tokens(
    compiler: GrammarCompiler, vocabulary: Vocabulary
) -> None:
    """The model chooses the tokenization, and the cost of a mask must not grow with the length of the text."""
    text = b"temperature and pressure" * 100
    matcher = compiler.matcher(serialized(f'start: "{text.decode()}"'))
    prefixes = {i for i, token in enumerate(vocabulary.tokens) if token and text.startswith(token)}
    assert bits(matcher.bitmask((), 0)) == prefixes and len(prefixes) > 1


@pytest.mark.parametrize("grammar", ["", "nonsense", serialized("start: /[a/"), DEAD_END])
def test_an_invalid_or_unsatisfiable_grammar_is_an_error(compiler: GrammarCompiler, grammar: str) -> None:
    with pytest.raises(GrammarError):
        compiler.check(grammar)
    compiler.check(ANSWER)


def test_tokens_that_break_the_grammar_are_an_error_and_not_the_end_of_the_text(compiler: GrammarCompiler) -> None:
    with pytest.raises(GrammarError):
        compiler.matcher(ANSWER).bitmask([5, 6, 7], 0)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
def test_every_answer_matches_its_grammar(vocabulary: Vocabulary, tokenizer: Tokenizer, temperature: float) -> None:
    engine = engine_with(vocabulary)
    answers = run(engine, [make_request(i, ANSWER, seed=i, temperature=temperature) for i in range(8)])
    for token_ids, error in answers.values():
        assert error is None
        assert token_ids[-1] == EOS
        assert re.fullmatch("(yes|no), [0-9]{2,4}!", b"".join(map(tokenizer.token_bytes, token_ids[:-1])).decode())


def test_neighbours_and_preemption_change_no_token_of_a_constrained_request(vocabulary: Vocabulary) -> None:
    requests = [make_request(i, ANSWER if i % 2 else None, seed=i, num_logprobs=2) for i in range(8)]
    alone = run_alone(engine_with(vocabulary), requests)
    small_pool = engine_with(vocabulary, num_kv_blocks=7, block_size=8)
    assert run(small_pool, requests) == alone


def test_the_small_pool_causes_preemptions(vocabulary: Vocabulary) -> None:
    small_pool = engine_with(vocabulary, num_kv_blocks=7, block_size=8)
    for i in range(8):
        small_pool.add(make_request(i, ANSWER if i % 2 else None, seed=i))
    num_preemptions = 0
    while small_pool.has_work():
        num_preemptions += small_pool.step().stats.num_preemptions
    assert num_preemptions > 0


def test_a_grammar_that_fails_ends_only_its_own_request(vocabulary: Vocabulary) -> None:
    requests = [
        make_request(0, None),
        make_request(1, "nonsense"),
        make_request(2, ANSWER),
        make_request(3, ANSWER, constraints=token_constraints(allowed_token_ids=(40,))),
    ]
    answers = run(engine_with(vocabulary), requests)
    assert answers[1] == ([], "the request's grammar cannot be used")
    assert answers[3] == ([], "the request's constraints leave no token to sample")
    alone = run_alone(engine_with(vocabulary), [requests[0], requests[2]])
    assert {0: answers[0], 2: answers[2]} == alone


def test_without_a_vocabulary_a_grammar_is_an_error_and_nothing_else_is() -> None:
    answers = run(engine_with(None), [make_request(0, None), make_request(1, ANSWER)])
    assert answers[0][1] is None
    assert answers[1][1] is not None and "vocabulary" in answers[1][1]


def test_an_abort_reaches_a_request_whose_grammar_is_being_compiled(vocabulary: Vocabulary) -> None:
    engine = engine_with(vocabulary)
    engine.add(make_request(0, ANSWER))
    engine.abort(0)
    assert not engine.has_work()
    assert run(engine, [make_request(1, ANSWER)])[1][1] is None


STATEFUL = serialized(r"start: /(\w{1,9}(a|b)){1,40}x/")  # each text reaches states of its own


def run_now(work: Callable[[], Any]) -> "Future[Any]":
    future: Future[Any] = Future()
    future.set_result(work())
    return future


def walk(matcher: GrammarMatcher, seed: int, num_tokens: int) -> tuple[list[int], bool]:
    """Draw tokens that the grammar allows. Return them, and whether the grammar failed behind them."""
    rng, tokens = random.Random(seed), list[int]()
    while len(tokens) < num_tokens:
        try:
            allowed = bits(matcher.bitmask(tokens, 0))
        except GrammarError:
            return tokens, True
        tokens.append(rng.choice(sorted(allowed)))
    return tokens, False


@pytest.mark.parametrize("max_states", [250, 1000])
def test_texts_of_one_build_fail_exactly_where_they_fail_alone(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch, max_states: int
) -> None:
    """Copies of llguidance's matcher share the states of its lexer, and so the limit on them."""
    limits = llguidance.LLParserLimits(max_lexer_states=max_states, step_lexer_fuel=10**9, initial_lexer_fuel=10**9)
    monkeypatch.setattr(matcher_module, "LIMITS", limits)
    built = compiler.build(STATEFUL)
    alone = [walk(compiler.matcher(STATEFUL), seed, 12) for seed in range(12)]
    assert [walk(built.matcher(run_now), seed, 12) for seed in range(12)] == alone
    assert {has_failed for _, has_failed in alone} == {max_states == 250}


def test_the_limit_is_shared_without_the_replay(compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault that the replay mends is there: without one, texts fail that would not fail alone."""
    limits = llguidance.LLParserLimits(max_lexer_states=1000, step_lexer_fuel=10**9, initial_lexer_fuel=10**9)
    monkeypatch.setattr(matcher_module, "LIMITS", limits)
    parser = compiler.parser(STATEFUL)
    assert any(walk(GrammarMatcher(parser.deep_copy()), seed, 12)[1] for seed in range(12))


def test_a_text_waits_for_a_parser_of_its_own_in_a_thread(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = llguidance.LLParserLimits(max_lexer_states=1000, step_lexer_fuel=10**9, initial_lexer_fuel=10**9)
    monkeypatch.setattr(matcher_module, "LIMITS", limits)
    alone = [walk(compiler.matcher(STATEFUL), seed, 12) for seed in range(12)]
    built = compiler.build(STATEFUL)
    started: list[tuple[Future[Any], Callable[[], Any]]] = []

    def start(work: Callable[[], Any]) -> "Future[Any]":
        started.append((Future(), work))
        return started[-1][0]

    for seed, (tokens, _) in enumerate(alone):
        matcher = built.matcher(start)
        for count in range(len(tokens)):
            if not matcher.prepare(tokens[:count], 0):
                assert not matcher.prepare(tokens[:count], 0)
                future, work = started[-1]
                future.set_result(work())
                assert matcher.prepare(tokens[:count], 0)
            assert tokens[count] in bits(matcher.bitmask(tokens[:count], 0)), seed
    assert started


def test_a_parser_holds_its_place_as_long_as_its_build(compiler: GrammarCompiler) -> None:
    class Place:
        pass

    place = Place()
    held = weakref.ref(place)
    built = compiler.build(ANSWER, place)
    del place
    assert held()
    del built
    assert not held()


def test_a_text_that_ends_while_it_waits_for_its_own_parser_cancels_it(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = compiler.build(ANSWER)
    future: Future[Any] = Future()
    monkeypatch.setattr(GrammarMatcher, "_next_mask", _fail)
    matcher = built.matcher(lambda work: future)
    assert not matcher.prepare([], 0)
    del matcher
    assert future.cancelled()


def _fail(*_: object) -> bytes:
    raise GrammarError("at the limit")


def test_rows_that_sit_out_steps_get_the_same_tokens(vocabulary: Vocabulary) -> None:
    requests = [make_request(i, ANSWER if i % 3 else None, seed=i, num_logprobs=2) for i in range(8)]
    alone = run_alone(engine_with(vocabulary), requests)
    engine = engine_with(vocabulary)
    engine._masks = MaskBudget(budget_s=0.0)  # one row in each step
    assert run(engine, requests) == alone


class Panic(BaseException):
    """A panic in the library arrives as a BaseException."""


class PanickingParser:
    """A parser that panics."""

    def compute_bitmask(self) -> bytes:
        raise Panic


def test_a_panic_in_the_library_is_a_grammar_error() -> None:
    with pytest.raises(GrammarError):
        GrammarMatcher(PanickingParser()).bitmask([], 0)  # type: ignore[arg-type]


def test_a_panic_while_a_grammar_is_compiled_ends_its_own_request(vocabulary: Vocabulary) -> None:
    engine = engine_with(vocabulary)
    compiler = engine._grammars._compiler
    assert compiler is not None
    build_grammar = compiler.build

    def build(grammar: str, place: object) -> BuiltGrammar:
        if grammar == "panic":
            raise Panic
        return build_grammar(grammar, place)

    compiler.build = build  # type: ignore[method-assign]
    answers = run(engine, [make_request(0, None), make_request(1, "panic"), make_request(2, ANSWER)])
    assert answers[1] == ([], "the request's grammar cannot be used")
    assert answers[0][1] is answers[2][1] is None


def test_a_matcher_that_raises_in_a_step_ends_its_own_request(vocabulary: Vocabulary) -> None:
    requests = [make_request(0, None, num_logprobs=2), make_request(1, ANSWER), make_request(2, ANSWER)]
    alone = run_alone(engine_with(vocabulary), [requests[0], requests[2]])
    engine = engine_with(vocabulary)
    start = engine.scheduler.add

    def add(request: Request, matcher: GrammarMatcher | None = None) -> None:
        if request.request_id == 1 and matcher is not None:
            matcher.bitmask = lambda *_: 1 // 0  # type: ignore[method-assign]
        start(request, matcher)

    engine.scheduler.add = add  # type: ignore[method-assign,assignment]
    answers = run(engine, requests)
    assert answers.pop(1) == ([], "the engine failed while computing this request")
    assert answers == alone
