"""How much each tenant was served: virtual token counters.

After Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024), algorithm 2: the waiting tenant with the
lowest counter goes next, and one that comes back to the queue is lifted to the lowest of those in it, so that nobody
saves up. With the paper's weights, what two tenants that both wait all the time were served never differs by more than
2 max(longest prompt, 2 * positions that the KV pool holds).
"""

from collections import Counter, defaultdict
from math import inf

PROMPT_WEIGHT, OUTPUT_WEIGHT = 1, 2  # of a computed prompt token and of a generated one


class FairShare:
    """Owned by the WaitingQueue. Tenants are few and known to the server (one per API key), so none is forgotten."""

    def __init__(self, max_running_each: float = inf) -> None:
        """`max_running_each`: how many running requests one tenant may have before the next is let in."""
        self._max_running_each = max_running_each
        self._served: defaultdict[int, int] = defaultdict(int)
        self._num_waiting: Counter[int] = Counter()
        self._num_running: Counter[int] = Counter()
        self._last_to_leave = 0  # the queue

    def served(self, tenant: int) -> int:
        """Weighted tokens; only ever more."""
        return self._served[tenant]

    def at_limit(self, tenant: int) -> bool:
        """Whether its next request must wait for one of its own to end."""
        return self._num_running[tenant] >= self._max_running_each

    def charge_prompt(self, tenant: int, num_tokens: int) -> None:
        self._served[tenant] += PROMPT_WEIGHT * num_tokens

    def charge_output(self, tenant: int) -> None:
        """Of one token: called for each request of each step."""
        self._served[tenant] += OUTPUT_WEIGHT

    def on_queued(self, tenant: int) -> None:
        """A request of the tenant joins the queue. One that had none there looks at all others that have."""
        if not self._num_waiting[tenant]:
            waiting = [self._served[other] for other, count in self._num_waiting.items() if count]
            floor = min(waiting) if waiting else self._served[self._last_to_leave]
            self._served[tenant] = max(self._served[tenant], floor)
        self._num_waiting[tenant] += 1

    def on_dequeued(self, tenant: int) -> None:
        """A request of the tenant leaves the queue."""
        self._num_waiting[tenant] -= 1
        if not self._num_waiting[tenant]:
            self._last_to_leave = tenant

    def on_started(self, tenant: int) -> None:
        self._num_running[tenant] += 1

    def on_stopped(self, tenant: int) -> None:
        """A running request ended, or went back to the queue."""
        self._num_running[tenant] -= 1
