"""A bound on bytes of one kind, shared among tenants. It refuses and never waits."""

from collections import Counter

from engine.config import max_slots_per_tenant


class ByteBudget:
    """Counts the bytes that are taken. With several tenants none may take more than 7 of 8 of the budget."""

    def __init__(self, limit_bytes: int, num_tenants: int = 1) -> None:
        self.used_bytes = 0
        self._num_tenants = num_tenants
        self._used_by: Counter[int] = Counter()
        self.resize(limit_bytes)

    def resize(self, limit_bytes: int) -> None:
        """Set the bound. What is taken beyond it stays until it is given back."""
        self.limit_bytes = limit_bytes
        self._max_per_tenant = max_slots_per_tenant(limit_bytes) if self._num_tenants > 1 else limit_bytes

    def try_take(self, tenant: int, num_bytes: int) -> bool:
        """Take bytes and return True; or take none and return False. Into an empty budget everything fits."""
        fits = self.used_bytes + num_bytes <= self.limit_bytes
        fits = fits and self._used_by[tenant] + num_bytes <= self._max_per_tenant
        if self.used_bytes and not fits:
            return False
        self.used_bytes += num_bytes
        self._used_by[tenant] += num_bytes
        return True

    def give_back(self, tenant: int, num_bytes: int) -> None:
        """Give back bytes that were taken."""
        self.used_bytes -= num_bytes
        self._used_by[tenant] -= num_bytes
