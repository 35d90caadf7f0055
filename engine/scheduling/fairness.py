"""Fair shares among tenants, by virtual token counters: each tenant's counter grows with the service it receives.

After Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024), algorithm 2: the waiting tenant with the
lowest counter goes next. When a tenant comes back to the queue, its counter is raised to the lowest counter of those in
the queue, so that no tenant saves up service. With the paper's weights (plain requests), the counters of two tenants
that both wait all the time never differ by more than 2 max(longest prompt, 2 * positions that the KV pool holds).
"""

from collections import Counter, defaultdict
from itertools import chain
from math import inf

from engine.scheduling.request_cost import OUTPUT_WEIGHT

MIN_RUNNING = 4  # requests of a tenant that may run at once whatever their tokens cost


class FairShare:
    """Counters of all tenants. Tenants are few and known to the server (one per API key), so none is dropped."""

    def __init__(self, max_running_each: float = inf) -> None:
        """`max_running_each`: how many requests of one tenant may run at once."""
        self._max_running_each = max_running_each
        self._served: defaultdict[int, int] = defaultdict(int)
        self._num_waiting: Counter[int] = Counter()
        self._num_running: Counter[int] = Counter()
        self._running_cost: Counter[int] = Counter()  # of one token of each running request
        self._last_dequeued = 0  # tenant whose last waiting request left the queue most recently

    def served(self, tenant: int) -> int:
        """Return the tenant's counter in weighted tokens. It never decreases."""
        return self._served[tenant]

    def at_limit(self, tenant: int) -> bool:
        """Return whether the tenant's next request must wait until one of its running requests ends."""
        return self._num_running[tenant] >= self._max_running_each

    def costs_too_much(self, tenant: int, output_cost: int) -> bool:
        """Return whether one more request, whose tokens cost `output_cost`, would make the tenant's part of a step cost
        more than plain requests in all slots that the tenant may have. Asked while several tenants are active."""
        limit = OUTPUT_WEIGHT * self._max_running_each
        return self._num_running[tenant] >= MIN_RUNNING and self._running_cost[tenant] + output_cost > limit

    @property
    def present(self) -> set[int]:
        """Return the tenants that have waiting or running requests."""
        counts = chain(self._num_waiting.items(), self._num_running.items())
        return {tenant for tenant, count in counts if count}

    def charge(self, tenant: int, cost: int) -> None:
        """Add to the tenant's counter; see engine/scheduling/request_cost.py. Called for each request of each step."""
        self._served[tenant] += cost

    def on_queued(self, tenant: int) -> None:
        """Count a request that joined the queue. O(waiting tenants) if the tenant had no request there, else O(1)."""
        if not self._num_waiting[tenant]:
            waiting = [self._served[other] for other, count in self._num_waiting.items() if count]
            floor = min(waiting) if waiting else self._served[self._last_dequeued]
            self._served[tenant] = max(self._served[tenant], floor)
        self._num_waiting[tenant] += 1

    def on_dequeued(self, tenant: int) -> None:
        """Count a request that left the queue."""
        self._num_waiting[tenant] -= 1
        if not self._num_waiting[tenant]:
            self._last_dequeued = tenant

    def on_started(self, tenant: int, output_cost: int = OUTPUT_WEIGHT) -> None:
        """Count a request that started to run. `output_cost`: of each of its tokens."""
        self._num_running[tenant] += 1
        self._running_cost[tenant] += output_cost

    def on_stopped(self, tenant: int, output_cost: int = OUTPUT_WEIGHT) -> None:
        """Count a running request that ended or went back to the queue."""
        self._num_running[tenant] -= 1
        self._running_cost[tenant] -= output_cost
