"""Stores of torch.distributed: that of rank 0, by which ranks find each other, and that of torchrun's agent, into
which rank 0 writes its port."""

from datetime import timedelta

from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

PORT_KEY = "port"
AGENT_S = 5.0  # for torchrun's agent to answer


def new_store(address: str, timeout_s: float) -> TCPStore:
    """Create a store on this host, at a port that the system chooses."""
    return TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout_s))


def join_store(address: str, port: int, timeout_s: float) -> TCPStore:
    """Connect to the store of rank 0."""
    return TCPStore(address, port, is_master=False, timeout=timedelta(seconds=timeout_s))


def write_to_agent_store(address: str, port: int, attempt: int, own_port: int) -> None:
    """Tell the other ranks at which port rank 0 is. Raises OSError."""
    _agent_store(address, port, attempt).set(PORT_KEY, str(own_port))


def port_in_agent_store(address: str, port: int, attempt: int) -> int:
    """Return the port of rank 0. Raises OSError if it is not there yet."""
    store = _agent_store(address, port, attempt)
    if not store.check([PORT_KEY]):
        raise ConnectionRefusedError(0, "it has not written its port")
    return int(store.get(PORT_KEY))


def _agent_store(address: str, port: int, attempt: int) -> Store:
    """Connect to the agent's store. torchrun starts all ranks again after a failure: each attempt has its own names."""
    try:
        store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=AGENT_S))
    except RuntimeError:
        raise ConnectionRefusedError(0, "torchrun's store does not answer") from None
    return PrefixStore(f"smoe/{attempt}", store)
