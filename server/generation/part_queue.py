"""Later parts of admitted requests, which wait until the engine's queue has places for them.

Knows tenants and numbers of choices, not what the choices are.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(eq=False)
class _Part:
    tenant: int
    num_choices: int
    turn: asyncio.Future[None]


class PartQueue:
    """Gives turns to parts, one at a time: tenant by tenant, and in order of arrival within a tenant.

    A part whose tenant has used up its share waits without holding back other tenants. One that waits for places holds
    back all parts behind it; otherwise smaller ones could pass it for ever. Belongs to one event loop.
    """

    def __init__(self, keeps_share: Callable[[int, int], bool], has_places: Callable[[int], bool]) -> None:
        """`keeps_share` of a tenant and a number of choices, `has_places` of a number of choices: whether they fit."""
        self._keeps_share = keeps_share
        self._has_places = has_places
        self._waiting: dict[int, deque[_Part]] = {}  # by tenant, never empty; the first tenant is next
        self._chosen: _Part | None = None  # has its turn, and its caller has not run yet

    def has(self, tenant: int) -> bool:
        """Return whether a part of the tenant waits."""
        return tenant in self._waiting

    @property
    def num_reserved(self) -> int:
        """Places that the next part of each tenant takes. A tenant that has used up its share reserves none."""
        heads = (parts[0] for parts in self._waiting.values())
        return sum(head.num_choices for head in heads if self._keeps_share(head.tenant, head.num_choices))

    async def turn(self, tenant: int, num_choices: int) -> None:
        """Wait until these choices fit.

        The caller queues them before it waits for anything else: the next part is chosen in a later iteration of the
        event loop, by the places that are left then.
        """
        part = _Part(tenant, num_choices, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(tenant, deque()).append(part)
        self.choose()
        try:
            await part.turn
        finally:
            self._remove(part)
            asyncio.get_running_loop().call_soon(self.choose)

    def choose(self) -> None:
        """Give a turn to the next part that fits, if there is one. Call it whenever places or shares may have grown."""
        if self._chosen is not None:
            return
        for parts in self._waiting.values():
            head = next((part for part in parts if not part.turn.done()), None)  # a cancelled one is removed soon
            if head is None or not self._keeps_share(head.tenant, head.num_choices):
                continue
            if self._has_places(head.num_choices):
                self._chosen = head
                head.turn.set_result(None)
            return

    def _remove(self, part: _Part) -> None:
        parts = self._waiting[part.tenant]
        parts.remove(part)
        if not parts:
            del self._waiting[part.tenant]
        if self._chosen is part:
            self._chosen = None
            if parts:
                self._waiting[part.tenant] = self._waiting.pop(part.tenant)  # behind the other tenants
