"""Queue in which tenants take turns, so that nobody waits behind all the items of another tenant."""

from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class TenantQueue(Generic[Item]):
    """Round robin over tenants; the items of one tenant leave in the order in which they came."""

    def __init__(self) -> None:
        self._items: dict[int | None, deque[Item]] = {}  # by tenant, never empty; the first tenant is next

    def __bool__(self) -> bool:
        return bool(self._items)

    def push(self, tenant: int | None, item: Item) -> None:
        """Add an item. None is one tenant more: all clients that are not known yet."""
        self._items.setdefault(tenant, deque()).append(item)

    def pop(self) -> Item:
        """Remove the next item. The queue must not be empty."""
        tenant, items = next(iter(self._items.items()))
        item = items.popleft()
        del self._items[tenant]
        if items:
            self._items[tenant] = items  # behind the other tenants
        return item
