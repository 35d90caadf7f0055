"""server/fairness/tenant_queue.py: tenants take turns, the items of each stay in order."""

import random
from collections import defaultdict

from server.fairness.tenant_queue import TenantQueue


def test_between_two_items_of_a_waiting_tenant_each_other_tenant_has_at_most_one() -> None:
    rng = random.Random(5)
    queue: TenantQueue[tuple[int, int]] = TenantQueue()
    pushed: defaultdict[int, int] = defaultdict(int)
    popped: defaultdict[int, int] = defaultdict(int)
    since: dict[int, list[int]] = {}  # by waiting tenant: whose items left since its last one
    for _ in range(5000):
        if rng.random() < 0.5 or not queue:
            tenant = rng.choice((0, 0, 0, 0, 1, 2))
            queue.push(tenant, (tenant, pushed[tenant]))
            pushed[tenant] += 1
            since.setdefault(tenant, [])
            continue
        tenant, number = queue.pop()
        assert number == popped[tenant], "an item overtook another of its tenant"
        popped[tenant] += 1
        assert len(set(since[tenant])) == len(since[tenant]), "a tenant had two turns while another waited"
        for other, turns in since.items():
            if other != tenant:
                turns.append(tenant)
        since[tenant] = []
        if popped[tenant] == pushed[tenant]:
            del since[tenant]
    assert all(number > 100 for number in popped.values())
    while queue:
        queue.pop()
    assert not queue
