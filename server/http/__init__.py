"""Sockets, HTTP/1.1, limits on connections and bodies, server-sent events."""
