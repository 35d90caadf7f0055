"""Limit of silence on a TCP connection: a host that loses its power or its cable closes none."""

import socket

SILENCE_S = 20.0  # until the group is complete; then --group-timeout counts
MAX_PROBE_S = 5  # between two probes of an idle connection


def limit_silence(connection: socket.socket, timeout_s: float = SILENCE_S) -> None:
    """Let a connection fail with ETIMEDOUT if the other host acknowledges nothing for `timeout_s`.

    With unacknowledged bytes the user timeout counts. An idle connection is probed, so that it fails too. The user
    timeout replaces the number of probes (tcp(7)); an idle connection fails at the next probe after it.
    """
    probe_s = max(1, min(MAX_PROBE_S, int(timeout_s / 4)))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(timeout_s * 1000))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, probe_s)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, probe_s)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
