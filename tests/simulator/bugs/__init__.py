"""Hand-made bugs: small changes of the product's source that tests.simulator.mutations applies."""

from tests.simulator.bugs.drafts import DRAFT_BUGS
from tests.simulator.bugs.execution import EXECUTION_BUGS
from tests.simulator.bugs.scheduling import SCHEDULING_BUGS

FOUND_LATE = {  # bugs that need more than 100 seeds: the first seed that finds each, tried first
    "the chunk that a share leaves may be empty": 217,
    "an urgent request is placed behind its tenant's others": 154,
    "a preempted request is placed before its tenant's urgent ones": 124,
    "a preempted request's chunk stays in the plan": 276,
    "a prompt's experts are reported twice": 521,
    "a row that fails after its cancel is ignored": 138,
    "blocks are zeroed again when results are fetched": 156,
    "a prompt's positions are not checked for NaN": 481,
    "half a chunk samples": 298,
    "a row is reused while a step uses it": 504,
    "embeddings of a step's first half are lost": 221,
    "a drafted chunk is split with its draft": 185,
    "the NaN of a draft stays in its slots when its step fails": 1264,
}

MUTATIONS = [*SCHEDULING_BUGS, *EXECUTION_BUGS, *DRAFT_BUGS]
