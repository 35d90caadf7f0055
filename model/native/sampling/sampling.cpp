// One row's token and log probabilities. Compiled once per instruction set.
#include "sampling/sampling.h"

#include <cstring>

#include "simd/exp_f64.h"
#include "simd/vec.h"

namespace smoe {
namespace SMOE_ISA {
namespace {

constexpr float INF = __builtin_inff();
constexpr float LARGEST_FLOAT = 3.4028234663852886e38f;
constexpr float MIN_TEMPERATURE = 1e-5f;  // anything lower is greedy
constexpr int64_t BLOCK = 512;            // masses are summed in blocks of so many, and the blocks in order

// One row's numbers among the columns of smoe_sampling.
struct Row {
    const float* reals;
    const int64_t* wholes;

    float temperature() const { return reals[0]; }
    float top_p() const { return reals[1]; }
    float min_p() const { return reals[2]; }
    float repetition() const { return reals[3]; }
    float frequency() const { return reals[4]; }
    float presence() const { return reals[5]; }
    int64_t top_k() const { return wholes[0]; }
    int64_t num_logprobs() const { return wholes[1]; }
    double uniform() const {
        return philox_uniform(static_cast<uint64_t>(wholes[2]), static_cast<uint32_t>(num_tokens()),
                              static_cast<uint32_t>(wholes[3]), static_cast<uint32_t>(wholes[4]));
    }
    int64_t num_prompt_tokens() const { return wholes[5]; }
    int64_t num_tokens() const { return wholes[6]; }
    int64_t given() const { return wholes[7]; }
    int64_t history_row() const { return wholes[8]; }
    int64_t mask_row() const { return wholes[9]; }
    int64_t first_bias() const { return wholes[10]; }
    int64_t end_bias() const { return wholes[11]; }

    bool penalises() const { return repetition() != 1.0f || frequency() != 0.0f || presence() != 0.0f; }
    bool changes_logits() const { return penalises() || mask_row() >= 0 || first_bias() < end_bias(); }
};

// The largest of x[V], and whether no number is NaN or +infinity.
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

// Extreme penalties and biases must not make an infinity: there is no telling infinities apart.
inline float bounded(float x) { return x < LARGEST_FLOAT ? x : LARGEST_FLOAT; }

// Penalties over prompt and output (repetition: Keskar et al. 2019, section 4.1) and over the output alone.
void apply_penalties(const Row& row, const int32_t* history, int32_t* counts, float* shaped) {
    const int64_t prompt = row.num_prompt_tokens(), end = row.num_tokens();
    for (int64_t i = prompt; i < end; ++i) ++counts[history[i]];
    for (int64_t i = 0; i < prompt; ++i)
        if (!counts[history[i]]) counts[history[i]] = -1;  // in the prompt alone
    for (int64_t i = 0; i < end; ++i) {
        const int32_t id = history[i], count = counts[id];
        if (!count) continue;
        counts[id] = 0;  // once
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

// Penalties, bias, masks: the logits themselves where the row asks for none.
const float* shape(const smoe_sampling& args, const Row& row, const float* logits, const SamplingMemory& memory) {
    if (!row.changes_logits()) return logits;
    float* shaped = memory.shaped;
    std::memcpy(shaped, logits, args.V * sizeof(float));
    if (row.penalises())
        apply_penalties(row, args.history + row.history_row() * args.history_len, memory.counts, shaped);
    for (int64_t i = row.first_bias(); i < row.end_bias(); ++i) {
        float& x = shaped[args.bias_ids[i]];
        x = bounded(x + args.bias_values[i]);
    }
    if (row.mask_row() >= 0) mask(args.masks + row.mask_row() * args.mask_words, args.V, shaped);
    return shaped;
}

// e^((x - largest) / temperature).
void find_masses(const float* x, int64_t V, float largest, float temperature, double* masses) {
    const double top = largest, scale = temperature;
    int64_t i = 0;
    for (; i + WIDE_LANES <= V; i += WIDE_LANES) {
        const Wide mass = exp((load_wide(x + i) - top) / scale);
        std::memcpy(masses + i, &mass, sizeof mass);
    }
    for (; i < V; ++i) masses[i] = exp((Wide{} + x[i] - top) / scale)[0];
}

double sum_block(const double* masses, int64_t count) {
    Wide sums = {};
    int64_t i = 0;
    for (; i + WIDE_LANES <= count; i += WIDE_LANES) {
        Wide mass;
        std::memcpy(&mass, masses + i, sizeof mass);
        sums += mass;
    }
    double total = 0;
    for (int lane = 0; lane < WIDE_LANES; ++lane) total += sums[lane];
    for (; i < count; ++i) total += masses[i];
    return total;
}

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

double sum(const double* masses, int64_t count) {
    double total = 0;
    for (int64_t first = 0; first < count; first += BLOCK)
        total += sum_block(masses + first, min(BLOCK, count - first));
    return total;
}

// The first index at which the running sum exceeds target < sum(masses).
int64_t invert(const double* masses, int64_t count, double target) {
    double before = 0;
    int64_t first = 0;
    for (; first + BLOCK < count; first += BLOCK) {
        const double block = sum_block(masses + first, BLOCK);
        if (before + block > target) break;
        before += block;
    }
    int64_t last = first;
    for (int64_t i = first; i < min(first + BLOCK, count); ++i) {
        if (masses[i] > 0) last = i;
        if ((before += masses[i]) > target) break;
    }
    return last;  // where rounding keeps the sum from getting there: the last that can be drawn
}

// Order-preserving: a larger float has a larger key; -0 and 0 have the same.
uint32_t key_of(float x) {
    uint32_t word;
    x += 0.0f;
    std::memcpy(&word, &x, sizeof word);
    return word >> 31 ? ~word : word | 0x80000000u;
}

// Masses of at least `least` become candidates.
Candidates gather(const float* x, int64_t V, double least, const SamplingMemory& memory) {
    Candidates kept{memory.masses, memory.keys, memory.ids, 0};
    for (int64_t i = 0; i < V; ++i) {
        if (memory.masses[i] < least || x[i] == -INF) continue;
        kept.masses[kept.count] = memory.masses[i];
        kept.keys[kept.count] = key_of(x[i]);
        kept.ids[kept.count++] = static_cast<int32_t>(i);
    }
    return kept;
}

int64_t draw(const Row& row, const float* x, int64_t V, float largest, const SamplingMemory& memory) {
    if (row.temperature() < MIN_TEMPERATURE) return find_first(x, V, largest);
    find_masses(x, V, largest, row.temperature(), memory.masses);
    if (row.top_k() <= 0 && row.top_p() >= 1.0f && row.min_p() <= 0.0f)
        return invert(memory.masses, V, row.uniform() * sum(memory.masses, V));
    Candidates kept = gather(x, V, row.min_p(), memory);
    if (row.top_k() > 0) keep_top_k(kept, row.top_k());
    if (row.top_p() < 1.0f) keep_top_p(kept, static_cast<double>(row.top_p()) * sum(kept.masses, kept.count));
    return kept.ids[invert(kept.masses, kept.count, row.uniform() * sum(kept.masses, kept.count))];
}

// The `count` largest of x, descending, ties to the lower id.
void find_top(const float* x, int64_t V, int64_t count, int32_t* ids) {
    int64_t found = 0;
    float least = -INF;  // of a full list: nothing at or below it gets in
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

// Of the raw logits: the token's, and those of the likeliest.
void write_logprobs(const smoe_sampling& args, int64_t row, int64_t count, const float* x, float largest,
                    const SamplingMemory& memory) {
    find_masses(x, args.V, largest, 1.0f, memory.masses);
    const double log_total = log_one(sum(memory.masses, args.V)), top = largest;
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
    if (row.given() >= 0) {
        token = row.given();
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
    const Row row{args.reals + index * SMOE_SAMPLING_REALS, args.wholes + index * SMOE_SAMPLING_WHOLES};
    const float* logits = args.logits + index * args.V;
    const Largest largest = find_largest(logits, args.V);
    const RowStatus status = choose_token(args, row, logits, largest, memory, args.token_ids[index]);
    args.status[index] = static_cast<uint8_t>(status);
    if (row.given() < 0)
        args.history[row.history_row() * args.history_len + row.num_tokens()] =
            static_cast<int32_t>(args.token_ids[index]);
    if (status == ROW_SAMPLED && row.num_logprobs() >= 0)
        write_logprobs(args, index, row.num_logprobs(), logits, largest.value, memory);
}

}  // namespace SMOE_ISA
}  // namespace smoe
