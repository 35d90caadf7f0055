"""Hand-made bugs between the server and its engine processes, which only a simulation of both can find."""

from tests.simulator.bugs.edits import bug

_CLIENT = "server.engine_client."
_BOOK = _CLIENT + "inflight:InFlightRequests."
_SUPERVISOR = _CLIENT + "supervisor:EngineSupervisor."
_PROCESS = "engine.process:"

SYSTEM_BUGS = [
    # Which request crashed the engine
    bug(
        "a suspect is blamed although others had run beside it",
        _BOOK + "engine_died",
        "is_alone = not lost and self._aborting.keys() <= {self._probing}",
        "is_alone = True",
    ),
    bug(
        "a suspect is blamed although the engine still computed an aborted one",
        _BOOK + "engine_died",
        "not lost and self._aborting.keys() <= {self._probing}",
        "not lost",
    ),
    bug("a suspect is blamed that the engine had not begun", _BOOK + "_pop_culprit", " or not entry.may_have_run", ""),
    bug(
        "suspects run beside each other",
        _BOOK + "pop_sendable",
        "[_mark_sent(self._suspects[self._probing])]",
        "[_mark_sent(entry) for entry in self._suspects.values()]",
    ),
    bug(
        "an abort is confirmed while a step computes the request",
        _PROCESS + "EngineProcess._handle",
        "self._aborted += aborts",
        "[self.channel.send(each) for each in step_messages(StepOutput([], engine.stats()), aborts) if aborts]",
    ),
    bug(
        "a request is added after its abort",
        _PROCESS + "EngineProcess._handle",
        "if request.request_id not in aborted",
        "if True",
    ),
    bug(
        "aborts are never confirmed",
        _PROCESS + "EngineProcess._send_step",
        "step_messages(step, ended)",
        "step_messages(step, [])",
    ),
    bug(
        "a request that crashes engines is never given up",
        _BOOK + "_pop_culprit",
        "if self._probing is None",
        "if True",
    ),
    bug("the next suspect is never sent", _BOOK + "_clear_suspect", "self._probing = None", "pass"),
    # Requests sent again
    bug("requests of a dead engine are not sent again", _BOOK + "engine_died", "self._sort_pending()", "pass"),
    bug(
        "a request is sent again after its first output",
        _BOOK + "take",
        "entry.request, entry.place = None",
        "_, entry.place = None",
    ),
    bug(
        "half a generation goes on without the other half",
        _BOOK + "engine_died",
        "if id(entry.collector) in lost]",
        "if entry.request is None]",
    ),
    bug(
        "the reason of an end is told to nobody",
        _CLIENT + "client:EngineClient._on_end",
        "collector.fail(reason)",
        "pass",
    ),
    bug("a lost request waits for ever", _CLIENT + "client:EngineClient._on_crash", "collector.fail(CRASHED)", "pass"),
    bug(
        "a blamed request gets no error",
        _CLIENT + "client:EngineClient._on_crash",
        "collector.put(output)",
        "pass",
    ),
    bug(
        "a question waits for a dead engine",
        _CLIENT + "client:EngineClient._reset",
        "self._expert_queries.fail(CRASHED)",
        "pass",
    ),
    bug(
        "an abort does not reach the engine",
        _CLIENT + "client:EngineClient._abort_in_engine",
        "self._supervisor.send(Abort(request_ids))",
        "pass",
    ),
    bug(
        "deadlines are not kept while there is no engine", _SUPERVISOR + "_watch", "self._events.on_tick(now_s)", "pass"
    ),
    bug("an aborted request keeps its deadline", _BOOK + "_remove", "self._timed", "{}"),
    # Processes
    bug(
        "a restarted engine may have other weights",
        _SUPERVISOR + "_on_ready",
        "(other := _difference(self.ready, ready))",
        "(other := '')",
    ),
    bug(
        "the limits change with the restart",
        _SUPERVISOR + "_restart",
        "_for_restart(self._start_message, self.ready)",
        "self._start_message",
    ),
    bug("two engines run at once", _SUPERVISOR + "_restart", "await previous.end()", "'ends'"),
    bug(
        "a stopped engine is never killed",
        _SUPERVISOR + "_act_on_stall",
        "stalled_s >= (timeouts.kill_after_s if",
        "stalled_s >= (9e9 if",
    ),
    bug(
        "an engine that hangs while it loads is never killed",
        _SUPERVISOR + "_act_on_stall",
        "timeouts.kill_loading_after_s",
        "9e9",
    ),
    bug(
        "the server never gives up",
        _CLIENT + "restart_policy:RestartPolicy.next_delay_s",
        "self._num_failed += 1",
        "pass",
    ),
    bug(
        "the server gives up on an engine that serves",
        _CLIENT + "restart_policy:RestartPolicy.next_delay_s",
        "self._num_exits = self._num_failed = 0",
        "pass",
    ),
    bug("an engine outlives the server", _SUPERVISOR + "stop", "await self._process.end(STOP_GRACE_S)", "pass"),
    # The link
    bug(
        "select() fails above descriptor 1023",
        _PROCESS + "Channel.receive",
        "self._poll.poll(0.0 if messages else timeout_s * 1000)",
        "select.select([self._connection], [], [], 0.0 if messages else timeout_s)[0]",
    ),
    bug(
        "the beginning of a message is dropped",
        "engine.messages:FrameReader.feed",
        "del self._buffer[:start]",
        "self._buffer.clear()",
    ),
    bug(
        "half a length is read",
        "engine.messages:FrameReader.feed",
        "while len(self._buffer) - start >= LENGTH.size",
        "while len(self._buffer) - start > 0",
    ),
    bug("a step is sent before its begin", "engine.engine:Engine._step", "self.on_prefill_start(starting)", "pass"),
    # Tenants
    bug(
        "one tenant takes every place in the queue",
        "server.generation.admission:Admission._keeps_share",
        "num_waiting + num_choices <= self._max_per_tenant",
        "True",
    ),
    bug(
        "one tenant takes every running slot",
        "scheduling.fairness:FairShare.at_limit",
        "self._num_running[tenant] >= self._max_running_each",
        "False",
    ),
    bug(
        "the tenant served most is next",
        "scheduling.waiting_queue:WaitingQueue._turn",
        "True, self.fair_share.served(head.tenant)",
        "True, -self.fair_share.served(head.tenant)",
    ),
    bug(
        "a refused request is counted for ever",
        "server.generation.admission:Admission.remove",
        "self.num_tokens -= num_tokens",
        "pass",
    ),
]

# Bugs that need more than ten seeds: a seed that finds each, tried first.
FOUND_LATE = {
    "a suspect is blamed although the engine still computed an aborted one": 3189,
    "an abort is confirmed while a step computes the request": 120,
    "a step is sent before its begin": 52,
    "a request is added after its abort": 8848,
    "a request is sent again after its first output": 1,  # seed 0 finds it too, after 5 s
    "the reason of an end is told to nobody": 13,
    "deadlines are not kept while there is no engine": 16,
    "a restarted engine may have other weights": 14,
    "two engines run at once": 21,
    "a stopped engine is never killed": 53,
    "an engine that hangs while it loads is never killed": 159,
    "the server never gives up": 16,
    "the server gives up on an engine that serves": 676,
}
