"""The API's description in OpenAPI 3.1, and a page made of it. Bounds come from the request models."""

from server.api.openapi.bounds import Facts
from server.api.openapi.document import document
from server.api.openapi.page import page

__all__ = ["Facts", "document", "page"]
