"""A certificate of localhost for tests, and what a TLS client sends first."""

import ssl
from pathlib import Path

CERTIFICATE = Path(__file__).parent / "cert.pem"  # its key is no secret
KEY = Path(__file__).parent / "key.pem"
ENCRYPTED_KEY = Path(__file__).parent / "encrypted_key.pem"  # the same key with a pass phrase
EXPIRED_CERTIFICATE = Path(__file__).parent / "expired_cert.pem"  # on 2020-01-02
EXPIRED_KEY = Path(__file__).parent / "expired_key.pem"
UNUSED_CURVE_CERTIFICATE = Path(__file__).parent / "unused_curve_cert.pem"  # of secp256k1, which TLS does not use
UNUSED_CURVE_KEY = Path(__file__).parent / "unused_curve_key.pem"


def client_context() -> ssl.SSLContext:
    """Return a client's settings that trust the certificate."""
    return ssl.create_default_context(cafile=CERTIFICATE)


class TlsClient:
    """A client without a socket: the caller moves the bytes."""

    def __init__(self, curve: str | None = None) -> None:
        """`curve`: of the only key that the hello offers. Without one it has a key of more than a thousand bytes."""
        self._received, self._to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = client_context()
        if curve is not None:
            context.set_ecdh_curve(curve)
        self._tls = context.wrap_bio(self._received, self._to_send, server_hostname="localhost")

    def shake_hands(self, received: bytes = b"") -> tuple[bytes, bool]:
        """Take what the server sent; return the client's next bytes, and True if the handshake is complete."""
        self._received.write(received)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return self._to_send.read(), False
        return self._to_send.read(), True


def client_hello(curve: str | None = None) -> bytes:
    """Return a ClientHello in one record."""
    return TlsClient(curve).shake_hands()[0]


def split_into_records(hello: bytes, num_bytes: int) -> bytes:
    """Return the same message in records of `num_bytes` bytes."""
    version, message = hello[1:3], hello[5:]
    parts = [message[start : start + num_bytes] for start in range(0, len(message), num_bytes)]
    return b"".join(b"\x16" + version + len(part).to_bytes(2, "big") + part for part in parts)
