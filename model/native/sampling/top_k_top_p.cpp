// Top-k and top-p without sorting: a radix search finds the threshold key digit by digit.
#include <cstddef>

#include "sampling/sampling.h"

namespace smoe {
namespace {

constexpr int NUM_DIGITS = 3;
constexpr int SHIFTS[NUM_DIGITS] = {21, 10, 0};
constexpr int WIDTHS[NUM_DIGITS] = {11, 11, 10};
constexpr int64_t MAX_BUCKETS = 1 << 11;

// Keeps the keys above `key`, and the first `ties` of those equal to it.
struct Threshold {
    uint32_t key;
    int64_t ties;
};

struct Bucket {
    double weight = 0;
    int64_t count = 0;
};

// Find the digit at which the running weight, from the largest digit down, reaches the limit; the last nonempty digit
// if rounding keeps it below. Adds the weight of larger digits to `before`.
uint32_t find_digit(const Bucket* buckets, double limit, double& before) {
    uint32_t last = 0;
    double before_last = before;
    for (int64_t digit = MAX_BUCKETS - 1; digit >= 0; --digit) {
        if (!buckets[digit].count) continue;
        last = static_cast<uint32_t>(digit), before_last = before;
        if (before + buckets[digit].weight >= limit) break;
        before += buckets[digit].weight;
    }
    before = before_last;
    return last;
}

template <class Weight>
Threshold find_threshold(const Candidates& candidates, double limit, Weight weight) {
    uint32_t key = 0, known = 0;  // digits found so far, and the mask of their bits
    double before = 0;
    for (int i = 0; i < NUM_DIGITS; ++i) {
        Bucket buckets[MAX_BUCKETS];
        const uint32_t mask = (1u << WIDTHS[i]) - 1;
        for (int64_t c = 0; c < candidates.count; ++c) {
            if ((candidates.keys[c] & known) != key) continue;
            Bucket& bucket = buckets[candidates.keys[c] >> SHIFTS[i] & mask];
            bucket.weight += weight(c);
            ++bucket.count;
        }
        key |= find_digit(buckets, limit, before) << SHIFTS[i];
        known |= mask << SHIFTS[i];
    }
    int64_t ties = 0;
    for (int64_t c = 0; c < candidates.count; ++c) {
        if (candidates.keys[c] != key) continue;
        before += weight(c);
        ++ties;
        if (before >= limit) break;
    }
    return {key, ties};
}

void apply(Candidates& candidates, Threshold cut) {
    int64_t kept = 0;
    for (int64_t c = 0; c < candidates.count; ++c) {
        if (candidates.keys[c] < cut.key || (candidates.keys[c] == cut.key && cut.ties-- <= 0)) continue;
        candidates.probs[kept] = candidates.probs[c];
        candidates.keys[kept] = candidates.keys[c];
        candidates.ids[kept++] = candidates.ids[c];
    }
    candidates.count = kept;
}

}  // namespace

void keep_top_k(Candidates& candidates, int64_t limit) {
    if (limit >= candidates.count) return;
    apply(candidates, find_threshold(candidates, static_cast<double>(limit), [](int64_t) { return 1.0; }));
}

void keep_top_p(Candidates& candidates, double limit) {
    apply(candidates, find_threshold(candidates, limit, [&](int64_t c) { return candidates.probs[c]; }));
}

double philox_uniform(uint64_t seed, uint32_t position, uint32_t prompt, uint32_t choice) {
    uint32_t counter[4] = {position, prompt, choice, 0};
    uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
    for (int round = 0; round < 10; ++round) {
        const uint64_t a = uint64_t{0xD2511F53u} * counter[0], b = uint64_t{0xCD9E8D57u} * counter[2];
        const uint32_t c0 = static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0];
        const uint32_t c2 = static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1];
        counter[0] = c0, counter[1] = static_cast<uint32_t>(b), counter[2] = c2, counter[3] = static_cast<uint32_t>(a);
        key[0] += 0x9E3779B9u, key[1] += 0xBB67AE85u;
    }
    return counter[0] * 0x1p-32;
}

}  // namespace smoe
