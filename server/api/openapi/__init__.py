"""The API's description in OpenAPI 3.1, and the page made of it. Bounds come from the request models themselves."""

from server.api.openapi.document import Facts, document
from server.api.openapi.page import page

__all__ = ["Facts", "document", "page"]
