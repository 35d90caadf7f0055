"""The header with an API key: for all commands that are clients of a server."""


def bearer(api_key: str) -> str:
    """Return the value of Authorization. Raises ValueError, in one line, for a key that no header can have."""
    if not (api_key and api_key.isascii() and api_key.isprintable() and api_key == api_key.strip()):
        raise ValueError("--api-key: should be printable ASCII characters, without spaces around them")
    return f"Bearer {api_key}"
