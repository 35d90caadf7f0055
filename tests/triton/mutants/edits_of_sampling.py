"""Bugs in sampling and log probabilities."""

from tests.triton.mutants.mutant import Mutant

TESTS = ("test_sampling.py",)


def _draw(old: str, new: str) -> Mutant:
    return Mutant("draw_kernel", "sampling", old, new, TESTS)


def _search(old: str, new: str) -> Mutant:
    return Mutant("draw_kernel", "sampling_threshold", old, new, TESTS)


def _logprobs(old: str, new: str) -> Mutant:
    return Mutant("logprobs_kernel", "sampling", old, new, TESTS)


# One of these masks alone changes nothing: what it lets through, another one leaves out.
GATHERED = """        logits = tl.load(scratch + index, mask=index < ties, other=float("-inf"))
        keys = tl.where(index < ties, sort_keys(logits), -1)
        probs = tl.where(index < ties, unnormalized_probs(logits, distribution), 0.0)
"""

SAMPLING = (
    _draw("tl.minimum(best, first), best))", "first, best))"),
    _draw("(block == top) & (ids < vocab_size), ids, 2147483647))", "block == top, ids, 2147483647)) + 1"),
    _draw("kept_ties = (top_k - count)", "kept_ties = (top_k - count + 1)"),
    _draw("total = mass + kept_ties * unnormalized_probs", "total = mass + unnormalized_probs"),
    _draw("limit = top_p * total", "limit = top_p"),
    _draw("needed = tl.ceil(", "needed = tl.floor("),
    _draw("kept = (keys > threshold)", "kept = (keys >= threshold)"),
    _draw("tie.to(tl.float64) <= num_kept_ties", "tie.to(tl.float64) < num_kept_ties"),
    _draw("tie = ties + tl.cumsum(ties_here)", "tie = tl.cumsum(ties_here)"),
    _draw("running = cumulative + tl.cumsum(probs)", "running = tl.cumsum(probs)"),
    _draw("tl.load(ints + SEED),", "tl.load(ints + SEED) + 1,"),
    _draw("tl.load(ints + CHOICE).to(tl.uint32)", "tl.load(ints + PROMPT).to(tl.uint32)"),
    _draw("float_params + index * float_stride", "float_params + index"),
    _draw("int_params + index * int_stride", "int_params + index"),
    _draw("scratch + index.to(tl.int64) * CANDIDATES", "scratch + index.to(tl.int64) * CANDIDATES + 1"),
    _draw("if temperature < MIN_TEMPERATURE:", "if temperature < 0.0:"),
    _search("(sort_keys(logits) >= threshold)", "(sort_keys(logits) > threshold)"),
    _search("(bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)", "bits.to(tl.int64)"),
    _search("tl.where(probs >= min_p, probs, 0.0)", "tl.where(probs > min_p, probs, 0.0)"),
    _search("total += tl.where(ids < vocab_size, probs, 0.0)", "total += tl.where(above, probs, 0.0)"),
    _search("high_mass = tl.where(is_low, high_mass, mass)", "high_mass = mass"),
    _search(GATHERED, GATHERED.replace("<", "<=")),
    _search("count += tl.sum((keys > low).to(tl.int32))", "count += tl.sum((keys >= low).to(tl.int32))"),
    _search("(keys >= low) & (keys < high)", "(keys >= low) & (keys <= high)"),
    _search("scratch + done + tl.cumsum(chosen) - chosen", "scratch + done + tl.cumsum(chosen)"),
    _search("        done += tl.sum(chosen)\n", "        done += 0\n"),
    _search("key = tl.where(num_cuts < 12, key, (low + high) // 2)", "key = tl.where(num_cuts < 120, key, low + 1)"),
    _logprobs("total += tl.sum(tl.exp(block.to(tl.float64)", "total = tl.sum(tl.exp(block.to(tl.float64)"),
    _logprobs("reference = largest.to(tl.float64) + tl.log(total)", "reference = tl.log(total)"),
    _logprobs("(keys == last_key) & (ids > last_id)", "(keys == last_key) & (ids >= last_id)"),
    _logprobs(
        "first = tl.min(tl.where(left & (keys == best), ids, 2147483647))",
        "first = tl.max(tl.where(left & (keys == best), ids, -1))",
    ),
    _logprobs("token = tl.where(best > key, first, token)", "token = tl.where(best >= key, first, token)"),
    _logprobs("tl.store(top_ids + index * num_top + place, token)", "tl.store(top_ids + index + place, token)"),
)
