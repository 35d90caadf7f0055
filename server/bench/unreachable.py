"""Why a server cannot be reached, in one line with the way out: for all commands that are clients of a server."""

import ssl

NAME_MISMATCHES = (62, 64)  # OpenSSL's codes for a certificate of another host name or IP address
TRY_TLS = "; if the server uses TLS, its URL begins with https://"


def tls_fault(error: Exception) -> str | None:
    """Return OpenSSL's words for a TLS handshake that failed; None for another error."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message.rstrip(".")
    if isinstance(error, ssl.SSLError):
        return (error.reason or "handshake failed").replace("_", " ").lower()
    return None


def unreachable(error: Exception, address: str, reason: str) -> str:
    """Return what keeps the server at `address` from being reached. `reason`: the system's words for `error`."""
    fault = tls_fault(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        is_misnamed = error.verify_code in NAME_MISMATCHES
        hint = "call it by a name that is in it" if is_misnamed else "SSL_CERT_FILE=FILE names a certificate to trust"
        return f"the certificate of {address} is not accepted ({fault}): {hint}"
    if fault is not None:
        return f"no TLS at {address} ({fault}): without TLS, a server's URL begins with http://"
    return f"no server at {address} ({reason}): start one with `smoe serve`"
