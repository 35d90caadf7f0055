"""The catalogue of bad inputs, by the rows of its specification. A row stands for its class: each has several cases.

"Zebra" stands in what a client sends wherever a text can be wrong: no error may repeat it.
"""

from tests.e2e.bad_inputs.forms import FORM_ROWS
from tests.e2e.bad_inputs.other_apis import OTHER_ROWS
from tests.e2e.bad_inputs.parameters import PARAMETER_ROWS
from tests.e2e.bad_inputs.prompts import PROMPT_ROWS
from tests.e2e.bad_inputs.tools import TOOL_ROWS

ROWS = PROMPT_ROWS | TOOL_ROWS | PARAMETER_ROWS | FORM_ROWS | OTHER_ROWS
