"""Grammars compiled on a thread of their own, with a fake compiler."""

import gc
from concurrent.futures import wait
from threading import Event
from typing import Any

from engine.errors import GrammarError
from engine.grammars.build_queue import UNUSABLE, CompiledRequest, GrammarQueue
from engine.types import Request, SamplingParams


class Panic(BaseException):
    """A panic in the library arrives as a BaseException."""


class FakeMatcher(str):
    """The grammar itself, as its matcher."""

    keeps_alive: object = None


class FakeBuild:
    def __init__(self, grammar: str, place: object) -> None:
        self._grammar = grammar
        self._place = place

    def matcher(self, run: object) -> FakeMatcher:
        return FakeMatcher(self._grammar)


class FakeCompiler:
    """Returns the grammar as its matcher once `may_finish` is set; some grammars raise."""

    def __init__(self) -> None:
        self.started = Event()
        self.may_finish = Event()
        self.compiled: list[str] = []

    def build(self, grammar: str, place: object) -> Any:
        self.started.set()
        assert self.may_finish.wait(60)
        self.compiled.append(grammar)
        if grammar == "invalid":
            raise GrammarError(grammar)
        if grammar == "panic":
            raise Panic
        return FakeBuild(grammar, place)


def submit(queue: GrammarQueue, *grammars: str) -> None:
    for request_id, grammar in enumerate(grammars):
        queue.submit(Request(request_id, [1], SamplingParams(), grammar=grammar))


def wait_for_all(queue: GrammarQueue) -> None:
    wait([future for _, future in queue._pending.values()], 60)


def queue_with(compiler: Any, num_requests: int = 99) -> GrammarQueue:
    return GrammarQueue(compiler, num_requests)


def test_requests_come_out_in_order_of_arrival_with_a_matcher_or_an_error() -> None:
    compiler = FakeCompiler()
    queue = queue_with(compiler)
    submit(queue, "a", "invalid", "panic", "b")
    assert queue.pop_completed() == [] and len(queue) == 4
    compiler.may_finish.set()
    wait_for_all(queue)
    completed = [(c.request.request_id, c.matcher, c.error) for c in queue.pop_completed()]
    assert completed == [(0, "a", None), (1, None, UNUSABLE), (2, None, UNUSABLE), (3, "b", None)]
    assert len(queue) == 0


def test_a_cancelled_request_does_not_come_out_and_a_waiting_grammar_is_not_compiled() -> None:
    compiler = FakeCompiler()
    queue = queue_with(compiler)
    submit(queue, "a", "b", "c")
    assert queue.cancel(1) and not queue.cancel(1) and not queue.cancel(9)
    compiler.may_finish.set()
    wait_for_all(queue)
    assert [c.request.request_id for c in queue.pop_completed()] == [0, 2]
    assert "b" not in compiler.compiled


def test_a_cancelled_grammar_that_is_being_compiled_is_known_until_it_is_compiled() -> None:
    compiler = FakeCompiler()
    queue = queue_with(compiler)
    submit(queue, "a", "b")
    assert compiler.started.wait(60)
    assert queue.cancel(0) and queue.cancel(1)
    assert queue.pop_completed() == [] and len(queue) == 0
    assert queue.is_compiling(0) and not queue.is_compiling(1)
    compiler.may_finish.set()
    submit(queue, "c")  # behind the canceled one
    wait_for_all(queue)
    assert not queue.is_compiling(0)
    assert queue.cancel(0) and not queue.is_compiling(0)  # compiled, not yet popped


def test_without_a_compiler_every_grammar_is_an_error() -> None:
    queue = queue_with(None)
    submit(queue, "a")
    wait_for_all(queue)
    [completed] = queue.pop_completed()
    assert completed.matcher is None and completed.error is not None and "vocabulary" in completed.error


def test_waiting_ends_with_the_first_grammar_that_is_compiled() -> None:
    compiler = FakeCompiler()
    compiler.may_finish.set()
    queue = queue_with(compiler)
    submit(queue, "a", "b")
    queue.wait(60)
    assert queue.pop_completed()


def of_group(group: int | None, request_id: int, grammar: str = "a", tenant: int = 0) -> Request:
    return Request(request_id, [1], SamplingParams(), grammar=grammar, group=group, tenant=tenant)


def test_the_choices_of_a_request_share_one_build_and_requests_never_do() -> None:
    compiler = FakeCompiler()
    queue = queue_with(compiler)
    for request in (of_group(0, 0), of_group(0, 1), of_group(2, 2), of_group(None, 3), of_group(None, 4)):
        queue.submit(request)
    compiler.may_finish.set()
    wait_for_all(queue)
    completed = queue.pop_completed()
    assert len({id(c.matcher) for c in completed}) == 5
    assert compiler.compiled == ["a"] * 4
    queue.submit(of_group(0, 5))  # a choice that comes late, while the others run
    wait_for_all(queue)
    assert [c.matcher for c in queue.pop_completed()] == ["a"] and compiler.compiled == ["a"] * 4
    del completed
    gc.collect()
    queue.submit(of_group(0, 6))
    wait_for_all(queue)
    assert compiler.compiled == ["a"] * 5, "a build lives as long as a choice that needs it"


def test_a_cancelled_choice_does_not_cancel_the_build_of_the_others() -> None:
    compiler = FakeCompiler()
    queue = queue_with(compiler)
    queue.submit(of_group(9, 0, "first"))
    assert compiler.started.wait(60)
    for request_id in (1, 2):
        queue.submit(of_group(1, request_id))
    assert queue.cancel(1) and queue.is_compiling(1)
    compiler.may_finish.set()
    wait_for_all(queue)
    assert [c.request.request_id for c in queue.pop_completed()] == [0, 2]
    assert not queue.is_compiling(1)


def test_a_choice_that_comes_after_a_cancelled_one_gets_a_build_of_its_own() -> None:
    """The build of the first one is canceled before it begins, and is still in the thread's queue."""
    compiler = FakeCompiler()
    queue = queue_with(compiler)
    queue.submit(of_group(9, 0, "first"))
    assert compiler.started.wait(60)
    queue.submit(of_group(1, 1))
    assert queue.cancel(1)
    queue.submit(of_group(1, 2))
    compiler.may_finish.set()
    wait_for_all(queue)
    assert [c.request.request_id for c in queue.pop_completed()] == [0, 2]


def test_one_tenant_with_many_builds_does_not_hold_up_another() -> None:
    compiler = FakeCompiler()
    queue = queue_with(compiler)
    for request_id in range(20):
        queue.submit(of_group(None, request_id, "slow"))
    assert compiler.started.wait(60)
    queue.submit(of_group(None, 20, "quick", tenant=1))
    compiler.may_finish.set()
    wait_for_all(queue)
    assert compiler.compiled.index("quick") <= 2


def test_builds_beyond_the_limit_wait_until_a_request_with_a_parser_ends() -> None:
    compiler = FakeCompiler()
    compiler.may_finish.set()
    queue = queue_with(compiler, num_requests=2)
    for group, request_id in ((10, 0), (10, 1), (11, 2), (12, 3), (13, 4)):
        queue.submit(of_group(group, request_id))
    held = _pop(queue, 3)
    assert [done.request.request_id for done in held] == [0, 1, 2] and len(compiler.compiled) == 2
    del held[1]
    assert queue.pop_completed() == [] and len(queue) == 2, "the other choice of the request keeps the parser"
    del held[0]
    held += _pop(queue, 1)
    assert [done.request.request_id for done in held] == [2, 3]
    assert queue.cancel(4)
    held.clear()
    assert queue.pop_completed() == [] and len(compiler.compiled) == 3


def _pop(queue: GrammarQueue, count: int) -> list[CompiledRequest]:
    """Return the next `count` compiled requests, and fail if there are more."""
    popped = queue.pop_completed()  # gives places to builds
    while len(popped) < count:
        queue.wait(60)
        popped += queue.pop_completed()
    assert len(popped) == count
    return popped
