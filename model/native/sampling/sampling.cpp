// Token and log probabilities of one row. Compiled once per instruction set.
#include "sampling/sampling.h"

#include <cstring>

#include "simd/exp_f64.h"
#include "simd/vec.h"

namespace smoe {
namespace SMOE_ISA {
namespace {

constexpr float INF = __builtin_inff();
constexpr float LARGEST_FLOAT = 3.4028234663852886e38f;
constexpr float MIN_TEMPERATURE = 1e-4f;  // as in model/sampling_batch.py: lower is greedy
constexpr int64_t BLOCK = 512;            // probabilities are summed in blocks of this size, and the blocks in order

// Parameters of one row: named access to the columns of smoe_sampling.
struct Row {
    const float* float_params;
    const int64_t* int_params;

    float temperature() const { return float_params[0]; }
    float top_p() const { return float_params[1]; }
    float min_p() const { return float_params[2]; }
    float repetition() const { return float_params[3]; }
    float frequency() const { return float_params[4]; }
    float presence() const { return float_params[5]; }
    int64_t top_k() const { return int_params[0]; }
    int64_t num_logprobs() const { return int_params[1]; }
    double uniform() const {
        return philox_uniform(static_cast<uint64_t>(int_params[2]), static_cast<uint32_t>(num_tokens()),
                              static_cast<uint32_t>(int_params[3]), static_cast<uint32_t>(int_params[4]));
    }
    int64_t num_prompt_tokens() const { return int_params[5]; }
    int64_t num_tokens() const { return int_params[6]; }
    int64_t target_token() const { return int_params[7]; }
    int64_t history_row() const { return int_params[8]; }
    int64_t mask_row() const { return int_params[9]; }
    int64_t first_bias() const { return int_params[10]; }
    int64_t end_bias() const { return int_params[11]; }

    bool has_penalties() const { return repetition() != 1.0f || frequency() != 0.0f || presence() != 0.0f; }
    bool changes_logits() const { return has_penalties() || mask_row() >= 0 || first_bias() < end_bias(); }
};

// Largest of x[V], and true if no number is NaN or +infinity.
struct Largest {
    float value;
    bool is_ordered;
};

Largest find_largest(const float* x, int64_t V) {
    Vec largest = broadcast(-INF);
    Words ordered = ~Words{};
    int64_t i = 0;
    for (; i + LANES <= V; i += LANES) {
        const Vec v = load(x + i);
        ordered &= (Words)(v < INF);
        largest = v > largest ? v : largest;
    }
    float value = -INF;
    bool is_ordered = true;
    for (int lane = 0; lane < LANES; ++lane) {
        value = largest[lane] > value ? largest[lane] : value;
        is_ordered &= ordered[lane] != 0;
    }
    for (; i < V; ++i) {
        value = x[i] > value ? x[i] : value;
        is_ordered &= x[i] < INF;
    }
    return {value, is_ordered};
}

int64_t find_first(const float* x, int64_t V, float value) {
    int64_t i = 0;
    for (; i + LANES <= V; i += LANES) {
        const Words equal = (Words)(load(x + i) == value);
        uint32_t any = 0;
        for (int lane = 0; lane < LANES; ++lane) any |= equal[lane];
        if (any) break;
    }
    while (x[i] != value) ++i;
    return i;
}

// Clamp to the finite range: extreme penalties and biases must not produce infinities, which could not be ordered.
inline float bounded(float x) { return x < LARGEST_FLOAT ? x : LARGEST_FLOAT; }

// Apply penalties over prompt and output (repetition: Keskar et al. 2019, section 4.1) and over the output only
// (frequency, presence).
void apply_penalties(const Row& row, const int32_t* history, int32_t* counts, float* shaped) {
    const int64_t prompt = row.num_prompt_tokens(), end = row.num_tokens();
    for (int64_t i = prompt; i < end; ++i) ++counts[history[i]];
    for (int64_t i = 0; i < prompt; ++i)
        if (!counts[history[i]]) counts[history[i]] = -1;  // occurs in the prompt only
    for (int64_t i = 0; i < end; ++i) {
        const int32_t id = history[i], count = counts[id];
        if (!count) continue;
        counts[id] = 0;  // penalize each id once
        float& x = shaped[id];
        if (row.repetition() != 1.0f) x = x > 0 ? x / row.repetition() : x * row.repetition();
        if (count > 0) x -= row.frequency() * static_cast<float>(count) + row.presence();
        x = bounded(x);
    }
}

void mask(const uint32_t* words, int64_t V, float* shaped) {
    for (int64_t i = 0; i < V; ++i)
        if (!(words[i / 32] >> (i % 32) & 1u)) shaped[i] = -INF;
}

// Apply penalties, bias and masks; return the logits themselves if the row has none of these.
const float* shape(const smoe_sampling& args, const Row& row, const float* logits, const SamplingMemory& memory) {
    if (!row.changes_logits()) return logits;
    float* shaped = memory.shaped;
    std::memcpy(shaped, logits, args.V * sizeof(float));
    if (row.has_penalties())
        apply_penalties(row, args.history + row.history_row() * args.history_len, memory.counts, shaped);
    for (int64_t i = row.first_bias(); i < row.end_bias(); ++i) {
        float& x = shaped[args.bias_ids[i]];
        x = bounded(x + args.bias_values[i]);
    }
    if (row.mask_row() >= 0) mask(args.masks + row.mask_row() * args.mask_words, args.V, shaped);
    return shaped;
}

// probs = e^((x - largest) / temperature), not normalized.
void unnormalized_probs(const float* x, int64_t V, float largest, float temperature, double* probs) {
    const double top = largest, scale = temperature;
    int64_t i = 0;
    for (; i + WIDE_LANES <= V; i += WIDE_LANES) {
        const Wide mass = exp((load_wide(x + i) - top) / scale);
        std::memcpy(probs + i, &mass, sizeof mass);
    }
    for (; i < V; ++i) probs[i] = exp((Wide{} + x[i] - top) / scale)[0];
}

double sum_block(const double* probs, int64_t count) {
    Wide sums = {};
    int64_t i = 0;
    for (; i + WIDE_LANES <= count; i += WIDE_LANES) {
        Wide mass;
        std::memcpy(&mass, probs + i, sizeof mass);
        sums += mass;
    }
    double total = 0;
    for (int lane = 0; lane < WIDE_LANES; ++lane) total += sums[lane];
    for (; i < count; ++i) total += probs[i];
    return total;
}

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

double sum(const double* probs, int64_t count) {
    double total = 0;
    for (int64_t first = 0; first < count; first += BLOCK) total += sum_block(probs + first, min(BLOCK, count - first));
    return total;
}

// Return the first index at which the running sum exceeds target < sum(probs).
int64_t inverse_cdf(const double* probs, int64_t count, double target) {
    double before = 0;
    int64_t first = 0;
    for (; first + BLOCK < count; first += BLOCK) {
        const double block = sum_block(probs + first, BLOCK);
        if (before + block > target) break;
        before += block;
    }
    int64_t last = first;
    for (int64_t i = first; i < min(first + BLOCK, count); ++i) {
        if (probs[i] > 0) last = i;
        if ((before += probs[i]) > target) break;
    }
    return last;  // rounding may keep the sum below target: return the last index that can be drawn
}

// Order-preserving integer key of a float: larger floats have larger keys; -0 and 0 share one.
uint32_t sort_key(float x) {
    uint32_t word;
    x += 0.0f;
    std::memcpy(&word, &x, sizeof word);
    return word >> 31 ? ~word : word | 0x80000000u;
}

// Collect as candidates the tokens with probability of at least `least`.
Candidates gather(const float* x, int64_t V, double least, const SamplingMemory& memory) {
    Candidates kept{memory.probs, memory.keys, memory.ids, 0};
    for (int64_t i = 0; i < V; ++i) {
        if (memory.probs[i] < least || x[i] == -INF) continue;
        kept.probs[kept.count] = memory.probs[i];
        kept.keys[kept.count] = sort_key(x[i]);
        kept.ids[kept.count++] = static_cast<int32_t>(i);
    }
    return kept;
}

int64_t draw(const Row& row, const float* x, int64_t V, float largest, const SamplingMemory& memory) {
    if (row.temperature() < MIN_TEMPERATURE) return find_first(x, V, largest);
    unnormalized_probs(x, V, largest, row.temperature(), memory.probs);
    if (row.top_k() <= 0 && row.top_p() >= 1.0f && row.min_p() <= 0.0f)
        return inverse_cdf(memory.probs, V, row.uniform() * sum(memory.probs, V));
    Candidates kept = gather(x, V, row.min_p(), memory);
    if (row.top_k() > 0) keep_top_k(kept, row.top_k());
    if (row.top_p() < 1.0f) keep_top_p(kept, static_cast<double>(row.top_p()) * sum(kept.probs, kept.count));
    return kept.ids[inverse_cdf(kept.probs, kept.count, row.uniform() * sum(kept.probs, kept.count))];
}

// Find the `count` largest of x in descending order, ties to the lower id.
void find_top(const float* x, int64_t V, int64_t count, int32_t* ids) {
    int64_t found = 0;
    float least = -INF;  // smallest entry of a full list; only larger numbers enter
    for (int64_t i = 0; i < V; i += LANES) {
        if (found == count && i + LANES <= V) {
            const Words above = (Words)(load(x + i) > least);
            uint32_t any = 0;
            for (int lane = 0; lane < LANES; ++lane) any |= above[lane];
            if (!any) continue;
        }
        for (int64_t id = i; id < min(i + LANES, V); ++id) {
            if (found == count && !(x[id] > least)) continue;
            int64_t place = found < count ? found++ : count - 1;
            for (; place > 0 && x[ids[place - 1]] < x[id]; --place) ids[place] = ids[place - 1];
            ids[place] = static_cast<int32_t>(id);
            least = x[ids[found - 1]];
        }
    }
}

// Write log probabilities of the raw logits: of the token, and of the top tokens.
void write_logprobs(const smoe_sampling& args, int64_t row, int64_t count, const float* x, float largest,
                    const SamplingMemory& memory) {
    unnormalized_probs(x, args.V, largest, 1.0f, memory.probs);
    const double log_total = log_one(sum(memory.probs, args.V)), top = largest;
    const auto logprob = [&](int64_t id) { return static_cast<float>((x[id] - top) - log_total); };
    args.logprob[row] = logprob(args.token_ids[row]);
    if (!count) return;
    int32_t* ids = args.top_ids + row * args.max_logprobs;
    find_top(x, args.V, min(count, args.V), ids);
    for (int64_t i = 0; i < min(count, args.V); ++i) args.top_logprobs[row * args.max_logprobs + i] = logprob(ids[i]);
}

RowStatus choose_token(const smoe_sampling& args, const Row& row, const float* logits, Largest largest,
                       const SamplingMemory& memory, int64_t& token) {
    token = 0;
    if (!largest.is_ordered || largest.value == -INF) return ROW_NOT_FINITE;
    if (row.target_token() >= 0) {
        token = row.target_token();
        return ROW_SAMPLED;
    }
    const float* shaped = shape(args, row, logits, memory);
    const float top = shaped == logits ? largest.value : find_largest(shaped, args.V).value;
    if (top == -INF) return ROW_NO_TOKEN;
    token = draw(row, shaped, args.V, top, memory);
    return ROW_SAMPLED;
}

}  // namespace

void sample_row(const smoe_sampling& args, int64_t index, const SamplingMemory& memory) {
    const Row row{args.float_params + index * SMOE_SAMPLING_FLOAT_PARAMS,
                  args.int_params + index * SMOE_SAMPLING_INT_PARAMS};
    const float* logits = args.logits + index * args.V;
    const Largest largest = find_largest(logits, args.V);
    const RowStatus status = choose_token(args, row, logits, largest, memory, args.token_ids[index]);
    args.status[index] = static_cast<uint8_t>(status);
    if (row.target_token() < 0)
        args.history[row.history_row() * args.history_len + row.num_tokens()] =
            static_cast<int32_t>(args.token_ids[index]);
    if (status == ROW_SAMPLED && row.num_logprobs() >= 0)
        write_logprobs(args, index, row.num_logprobs(), logits, largest.value, memory);
}

}  // namespace SMOE_ISA
}  // namespace smoe
