"""The truth, as no part of the system knows it: the lives of engine processes, and the history."""

from dataclasses import dataclass, field


@dataclass
class Life:
    """One engine process."""

    number: int
    weights: int
    received_ids: set[int] = field(default_factory=set)  # requests that arrived
    begun_ids: set[int] = field(default_factory=set)  # requests that a step or a compilation worked on
    output_ids: set[int] = field(default_factory=set)  # requests of which an output was sent
    is_alive: bool = True
    was_ready: bool = False
    has_lost_a_rank: bool = False  # in the middle of a step
    ids_at_end: frozenset[int] = frozenset()  # requests inside when it ended
    how: str = ""  # how it ended


class Truth:
    """Lives in order, and one line for each event."""

    def __init__(self) -> None:
        self.lives: list[Life] = []  # in the order of their starts
        self.ended: list[Life] = []  # in the order of their ends
        self.history: list[str] = []
        self.violations: list[str] = []
        self.seen: dict[str, int] = {}

    def note(self, now_s: float, text: str) -> None:
        self.history.append(f"{now_s - 1000:9.3f} {text}")

    def count(self, name: str) -> None:
        self.seen[name] = self.seen.get(name, 0) + 1

    def violate(self, what: str) -> None:
        """Record a broken invariant; the run goes on, so that no exception of a check is swallowed on its way."""
        self.violations.append(what)
