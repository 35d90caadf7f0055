"""The catalogue of bad inputs. Each row is a class of inputs, with several cases.

"Zebra" is part of every invalid text that a client sends: no error may repeat it.
"""

from tests.e2e.bad_inputs.ollama import OLLAMA_ROWS
from tests.e2e.bad_inputs.other_apis import OTHER_ROWS
from tests.e2e.bad_inputs.parameters import PARAMETER_ROWS
from tests.e2e.bad_inputs.prompts import PROMPT_ROWS
from tests.e2e.bad_inputs.response_formats import FORMAT_ROWS
from tests.e2e.bad_inputs.tools import TOOL_ROWS

ROWS = PROMPT_ROWS | TOOL_ROWS | PARAMETER_ROWS | FORMAT_ROWS | OTHER_ROWS | OLLAMA_ROWS
