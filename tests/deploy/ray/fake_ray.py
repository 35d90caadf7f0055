"""The part of Ray that deploy/ray/fleet.py uses, in this process: a remote call runs when its result is taken."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any


class RayError(Exception):
    """Base of Ray's errors."""


@dataclass
class Call:
    """A remote call of a method."""

    method: Callable[..., Any]
    arguments: tuple[Any, ...]

    def result(self) -> Any:
        return self.method(*self.arguments)


@dataclass
class Actor:
    """A handle. Attributes are methods with `remote`."""

    instance: Any

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: Call(getattr(self.instance, name), arguments))


@dataclass
class FakeRay:
    """Stands for the module. `make`: what an actor is in place of its class."""

    make: Callable[..., Any]
    options: dict[str, Any] = field(default_factory=dict)
    killed: list[Any] = field(default_factory=list)
    finished: list[Any] = field(default_factory=list)  # actors whose last calls are complete for `wait`
    util = SimpleNamespace(get_node_ip_address=lambda: "127.0.0.1")
    exceptions = SimpleNamespace(RayError=RayError)

    def remote(self, **options: Any) -> Callable[[type], Any]:
        self.options = options
        return lambda actor_class: SimpleNamespace(remote=lambda *arguments: Actor(self.make(*arguments)))

    def get(self, call: Call, timeout: float) -> Any:
        return call.result()

    def wait(
        self, calls: Sequence[Call], num_returns: int = 1, timeout: float | None = None
    ) -> tuple[list[Call], list[Call]]:
        done = [call for call in calls if timeout is None or call.method.__self__ in self.finished]
        for call in done:
            call.result()
        return done, [call for call in calls if call not in done]

    def kill(self, actor: Actor) -> None:
        self.killed.append(actor.instance)
