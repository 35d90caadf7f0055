"""Hand-made bugs: small changes of the product's source that tests.simulator.mutations applies."""

from tests.simulator.bugs.drafts import DRAFT_BUGS
from tests.simulator.bugs.execution import EXECUTION_BUGS
from tests.simulator.bugs.scheduling import SCHEDULING_BUGS

FOUND_LATE = {  # bugs that need more than ten seeds: a seed that finds each, tried first
    "a block is found before it is computed": 57,
    "tokens are not compared on a hit": 25,
    "a prefix is shared across tenants": 12,
    "a prefix is shared across expert masks": 25,
    "a request is preempted while a step computes it": 20,
    "an urgent request is placed before other tenants' requests": 546,
    "an urgent request is placed behind its tenant's others": 154,
    "a preempted request is placed before its tenant's urgent ones": 124,
    "one request too many runs": 17,
    "a preempted request's chunk stays in the plan": 276,
    "the time of a tenant's prompts is not counted": 12,
    "the chunk that a share leaves may be empty": 217,
    "one tenant's prompts use up the share of all": 12,
    "a share is as large as that of all tenants": 12,
    "a lone tenant's prompts are bounded": 12,
    "a tenant that has ended its request is active forever": 12,
    "a tenant that only waits is not active": 12,
    "running prompts pass the share": 12,
    "ignore_eos is ignored": 58,
    "a prompt's experts are reported twice": 521,
    "a row that fails after its cancel is ignored": 138,
    "blocks are zeroed again when results are fetched": 156,
    "a prompt's positions are not checked for NaN": 481,
    "half a chunk samples": 298,
    "a result that cannot be applied ends the engine": 39,
    "the row before a prompt's last is embedded": 11,
    "embeddings of a step's first half are lost": 221,
    "a row is reused while a step uses it": 504,
    "one position too few counts as computed behind a draft": 75,
    "the end is found one token late": 154,
    "experts of wrong drafted positions are reported": 18,
    "a draft is scheduled again while it is in flight": 65,
    "a drafted chunk is split with its draft": 185,
    "the NaN of a draft stays in its slots when its step fails": 1264,
    "the text's own parser consumes the guesses": 13,
    "the copy stays behind other guesses": 18,
    "masks behind other guesses are kept": 39,
    "a new copy does not consume the known guesses": 18,
    "a row of a draft has the mask of the row before": 18,
    "all rows of a draft have the mask of the first": 18,
}

MUTATIONS = [*SCHEDULING_BUGS, *EXECUTION_BUGS, *DRAFT_BUGS]
