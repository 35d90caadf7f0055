"""What was taken on and has given nothing yet: the work that a newcomer would wait behind, and its bounds."""

from collections import Counter

from engine.config import share_of_places

TOKENS_PER_CHOICE = 1024  # where no bound on tokens is given: so many for each choice that may wait


class Admission:
    """Choices from their admission to their first output, and the tokens of their prompts, by tenant."""

    def __init__(self, max_choices: int, max_tokens: int | None = None, num_tenants: int = 1) -> None:
        """`num_tenants`: with more than one, none may fill the queue alone."""
        self.max_tokens = max_choices * TOKENS_PER_CHOICE if max_tokens is None else max_tokens
        self.num_tokens = 0
        self._max_each = share_of_places(max_choices) if num_tenants > 1 else max_choices
        self._num_choices: Counter[int] = Counter()

    def has_room(self, tenant: int, num_choices: int) -> bool:
        """Prompts are taken while those that wait are below the bound, whatever they add to it themselves: else one
        that is longer than the bound could never come in. So the bound is passed by one request at most.
        Likewise a request with more choices than a tenant's share is taken from a tenant that has none waiting."""
        of_tenant = self._num_choices[tenant]
        return self.num_tokens < self.max_tokens and (not of_tenant or of_tenant + num_choices <= self._max_each)

    def add(self, tenant: int, num_tokens: int) -> None:
        """A choice waits from now on."""
        self._num_choices[tenant] += 1
        self.num_tokens += num_tokens

    def remove(self, tenant: int, num_tokens: int) -> None:
        """It gave its first output, or ended."""
        self._num_choices[tenant] -= 1
        self.num_tokens -= num_tokens
