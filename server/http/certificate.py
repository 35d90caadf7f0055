"""The files of --ssl-certfile and --ssl-keyfile, tried out before a client meets them."""

import contextlib
import ssl
import time
from dataclasses import dataclass
from pathlib import Path

NUM_FLIGHTS = 3  # of each side, until a handshake is complete; TLS 1.3 needs two


class CertificateError(Exception):
    """The given files are not a certificate and its key. One line."""


@dataclass(frozen=True)
class Certificate:
    """Result of a client's check of a certificate's dates and purpose; not of its names, nor of who signed it."""

    ends: str  # its last day, such as "2027-01-31"; empty if it is refused or cannot be told
    fault: str  # why clients refuse it, in one line; empty if it is accepted


def check_certificate(certfile: Path, keyfile: Path) -> Certificate:
    """Load the files as the server does, and shake hands with a client in memory. Raises CertificateError."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        server.load_cert_chain(certfile, keyfile, password=_refuse_encrypted_key)
    except ssl.SSLError:
        raise CertificateError("--ssl-certfile, --ssl-keyfile: these are not a certificate and its key") from None
    except OSError as error:
        raise CertificateError(f"--ssl-certfile, --ssl-keyfile: cannot be read: {error.strerror}") from None
    try:
        ends = _shake_hands(server, _trusting(certfile))
    except ssl.SSLCertVerificationError as error:
        return _refused(certfile, error.verify_message)
    except ssl.SSLError as error:  # the sides agree on nothing, such as for a key on a curve that TLS does not use
        return _refused(certfile, (error.reason or "the handshake fails").lower().replace("_", " "))
    return Certificate(ends, "")


def _refused(certfile: Path, reason: str) -> Certificate:
    return Certificate("", f"--ssl-certfile {certfile}: clients will refuse it: {reason}")


def _refuse_encrypted_key() -> str:
    """Called for a key with a pass phrase, for which OpenSSL would ask at the terminal."""
    raise CertificateError("--ssl-keyfile: the key is encrypted; give one without a pass phrase")


def _trusting(certfile: Path) -> ssl.SSLContext:
    """Return a client's settings that trust the certificate, whoever signed it and whatever it names."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(certfile)
    return client


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> str:
    """Return the last day of the server's certificate; empty if the handshake does not get there. Raises SSLError."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(NUM_FLIGHTS):
        for side in sides:
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    try:
        found = sides[0].getpeercert()
    except ValueError:  # the handshake is not done yet
        return ""
    assert found is not None
    ends_s = ssl.cert_time_to_seconds(str(found["notAfter"]))
    return time.strftime("%Y-%m-%d", time.gmtime(ends_s))
