"""Pictures and animations of the page, for the docs and to be looked at."""
