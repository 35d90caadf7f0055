"""All hand-made bugs: masks, indices, widenings, orders of sums and scales of every kernel."""

from tests.triton.mutants.edits_of_attention import ATTENTION
from tests.triton.mutants.edits_of_layers import LAYERS
from tests.triton.mutants.edits_of_products import PRODUCTS
from tests.triton.mutants.edits_of_sampling import SAMPLING

MUTANTS = (*PRODUCTS, *ATTENTION, *LAYERS, *SAMPLING)
