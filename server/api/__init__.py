"""The HTTP API: routes, request bodies, reply formats, OpenAPI description."""
