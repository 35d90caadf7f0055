"""Invariants of a finished simulation: every request ended once, as its history allows, and nothing of it is left."""

from server.engine_client.inflight import CULPRIT_ERROR, DEADLINE_GRACE_S
from server.engine_client.output_collector import CRASHED, SHUTTING_DOWN
from server.engine_client.restart_policy import MAX_FAILED_STARTS
from tests.simulator.record import expected
from tests.simulator.system.clients import Choice
from tests.simulator.system.simulation import TIMEOUTS, SystemSimulation
from tests.simulator.system.truth import Life

OTHER_WEIGHTS = "restart the server"  # the end of the message about them
MAX_LATE_S = DEADLINE_GRACE_S + 2 * TIMEOUTS.observe_interval_s
MAX_ENDS_ALONE = 2  # the first makes a request a suspect, the second convicts it


class Invariants:
    """Checks of one simulation that has ended; each broken one becomes a violation of its truth."""

    def __init__(self, simulation: SystemSimulation) -> None:
        self.simulation = simulation
        self.truth = simulation.truth

    def check(self) -> None:
        """Check all of them."""
        for choice in self.simulation.choices.values():
            if choice.end is None:
                self.truth.violate(f"request {choice.request.request_id} got no end")
            else:
                self._check_end(choice)
            self._check_attempts(choice)
        self._check_tables()
        self._check_death()

    def _check_end(self, choice: Choice) -> None:
        request_id, end = choice.request.request_id, choice.end
        if end in ("stop", "length"):
            self._check_tokens(choice, is_complete=True)
        else:
            self._check_tokens(choice, is_complete=False)
        if end == "error":
            if choice.error != CULPRIT_ERROR:
                self.truth.violate(f"request {request_id} ended with an error that nothing caused: {choice.error}")
            else:
                self._check_culprit(choice)
        elif end == "gone":
            self._check_gone(choice)
        elif end in ("timeout", "queue_timeout"):
            self._check_timeout(choice)
        deadline_s = choice.request.deadline_s
        if (
            deadline_s is not None
            and choice.ended_s > max(deadline_s, choice.submitted_s) + MAX_LATE_S
            and end != "refused"
        ):
            self.truth.violate(f"request {request_id} ended {choice.ended_s - deadline_s:.1f} s after its deadline")

    def _check_attempts(self, choice: Choice) -> None:
        """No engine gets a request that had ended before it started, nor one that crashed two engines alone."""
        request_id = choice.request.request_id
        if any(request_id in life.received_ids for life in self.truth.lives[choice.num_engines_started :]):
            self.truth.violate(f"request {request_id} was sent to an engine that started after its end")
        alone = [life for life in self.truth.ended if life.ids_at_end == {request_id} <= life.begun_ids]
        if len(alone) > MAX_ENDS_ALONE:
            self.truth.violate(f"request {request_id} was alone at the end of {len(alone)} engines")

    def _check_tokens(self, choice: Choice, *, is_complete: bool) -> None:
        request = choice.request
        ready = self.simulation.client.ready
        if ready is None:
            return  # no engine ever loaded: nothing was submitted
        tokens, end = expected(self.simulation.plan.setup, ready.max_model_len, request)
        if is_complete and (choice.token_ids, choice.end) != (tokens, end):
            self.truth.violate(f"request {request.request_id} got {choice.token_ids} {choice.end}, not {tokens} {end}")
        elif choice.token_ids != tokens[: len(choice.token_ids)]:
            self.truth.violate(
                f"request {request.request_id} got {choice.token_ids}, which {tokens} does not begin with"
            )

    def _check_culprit(self, choice: Choice) -> None:
        """A blamed request was in two engines that died, in the last of them without any other request."""
        request = choice.request
        started = self.truth.lives[: choice.num_engines_started]
        deaths = [life for life in started if request.request_id in life.received_ids]
        has_grammar = request.grammar is not None  # the server cannot know whether its compilation had begun
        if len(deaths) < 2 and not has_grammar:
            self.truth.violate(f"request {request.request_id} is blamed after {len(deaths)} crashes")
        if not choice.ids_in_engine <= {request.request_id}:
            others = sorted(choice.ids_in_engine - {request.request_id})
            self.truth.violate(f"request {request.request_id} is blamed for the end of an engine with {others}")
        last = self.truth.lives[choice.num_engines_started - 1]
        if request.request_id not in last.begun_ids and not has_grammar:
            self.truth.violate(f"request {request.request_id} is blamed, and the engine had not begun it")

    def _check_gone(self, choice: Choice) -> None:
        """A request is lost with its engine if a choice of its generation had an output, or if no engine follows."""
        if choice.error == SHUTTING_DOWN:
            if self.simulation.stopped_s is None:
                self.truth.violate(f"request {choice.request.request_id} ended for a shutdown that was not ordered")
            return
        assert choice.error == CRASHED
        if self.simulation.dead_s is not None and choice.ended_s >= self.simulation.dead_s:
            return
        group = self._group(choice)
        if not any(life.output_ids & group for life in self.truth.lives):
            self.truth.violate(f"request {choice.request.request_id} is lost, and it could have been sent again")

    def _group(self, choice: Choice) -> set[int]:
        prompt_index = choice.request.params.prompt_index  # the number of the generation
        return {
            id_ for id_, other in self.simulation.choices.items() if other.request.params.prompt_index == prompt_index
        }

    def _check_timeout(self, choice: Choice) -> None:
        request = choice.request
        deadline_s = request.deadline_s if choice.end == "timeout" else request.queue_deadline_s
        if deadline_s is None or deadline_s > choice.ended_s:
            self.truth.violate(f"request {request.request_id} timed out before its deadline {deadline_s}")
        if choice.end == "queue_timeout" and choice.token_ids:
            self.truth.violate(f"request {request.request_id} left the queue twice")

    def _check_tables(self) -> None:
        for left in (self.simulation.left_in_book, self.simulation.book()):
            if left:
                self.truth.violate(f"the book of requests still has {left}")
        queries = self.simulation.client._expert_queries
        if queries._replies or queries._questions:
            self.truth.violate("a question about experts is left")
        if self.simulation.admission.num_tokens or self.simulation.admission._waiting:
            self.truth.violate("the admission still counts a request")
        if (host := self.simulation.machine.host) is not None and host.life.is_alive:
            self.truth.violate("an engine outlives the server")
        if host is not None and host.engine is not None and host.life.ids_at_end and host.life.how.startswith("exit"):
            self._check_left_in_engine(host.life)

    def _check_left_in_engine(self, life: Life) -> None:
        if self.simulation.stopped_s is None and self._dead_reason() == SHUTTING_DOWN:
            self.truth.violate(f"the engine still had {sorted(life.ids_at_end)} when every client had its end")

    def _dead_reason(self) -> str:
        return self.simulation.client.status.message or ""

    def _check_death(self) -> None:
        """The server gives up for a reason that is true, and does not go on with other weights."""
        message = self._dead_reason()
        if self.simulation.client.ready is None:
            return  # the first engine did not load, which ends the server at once
        weights = {life.weights for life in self.truth.lives if life.was_ready}
        if OTHER_WEIGHTS in message and len(weights) == 1:
            self.truth.violate("the server gave up for other weights, but they were the same")
        if f"{MAX_FAILED_STARTS} engine processes" in message:
            last = self.truth.ended[-MAX_FAILED_STARTS:]
            if len(last) < MAX_FAILED_STARTS or any(life.output_ids for life in last):
                self.truth.violate("the server gave up although an engine had served")
        elif message != SHUTTING_DOWN and OTHER_WEIGHTS not in message:
            self.truth.violate(f"the server gave up: {message}")
        if self.simulation.plan.is_doomed and message == SHUTTING_DOWN and self.simulation.stopped_s is None:
            self._check_doomed()

    def _check_doomed(self) -> None:
        num_failed = sum(1 for life in self.truth.lives if life.how and not life.was_ready)
        if num_failed >= 2 * MAX_FAILED_STARTS:
            self.truth.violate("engines fail to load again and again, and the server does not give up")
