#include <algorithm>
#include <cstring>
#include <limits>

#include "gemm/gemm.h"
#include "gemm/packing/quantize_common.h"
#include "simd/transpose.h"

namespace smoe {
namespace SMOE_ISA {
namespace {

constexpr int CHUNK_UNITS = 16;  // int8: units of a row that are quantized before those of the next one
constexpr int CHUNK = 4 * CHUNK_UNITS;

// Outputs of a panel: `count` rows of K numbers, one behind the other.
template <class T>
struct Rows {
    const T* first;
    int count;
    int64_t K;

    // Numbers k .. k + LANES - 1 of row n; zeros past its end and for absent rows.
    Vec load(int n, int64_t k) const { return n < count && k < K ? load_first(first + n * K + k, K - k) : Vec{}; }
};

// Word u of each row to out[u][PANEL], for u < count.
void store_columns(const uint32_t (&rows)[PANEL][CHUNK_UNITS], int64_t count, uint32_t* out) {
    for (int n = 0; n < PANEL; n += LANES)
        for (int u = 0; u < CHUNK_UNITS; u += LANES) {
            Vec square[LANES];
            for (int i = 0; i < LANES; ++i) square[i] = from_bits(load_words(rows[n + i] + u));
            transpose(square);
            for (int i = 0; i < LANES && u + i < count; ++i)
                std::memcpy(out + (u + i) * PANEL + n, &square[i], sizeof square[i]);
        }
}

template <class T>
void quantize_to_int8(const Rows<T>& rows, uint32_t* panel) {
    const int64_t depth = ceil_div(rows.K, 4);
    Scale scales[PANEL] = {};
    for (int n = 0; n < rows.count; ++n) scales[n] = scale_of(largest_magnitude(rows.first + n * rows.K, rows.K));
    alignas(64) uint32_t chunk[PANEL][CHUNK_UNITS];
    for (int64_t k = 0; k < rows.K; k += CHUNK) {
        for (int n = 0; n < PANEL; ++n)
            for (int i = 0; i < CHUNK; i += LANES) {
                const Words q = round_to_integers(rows.load(n, k + i) * scales[n].inverse) + 128u;
                store_low_bytes(reinterpret_cast<uint8_t*>(chunk[n]) + i, q);
            }
        store_columns(chunk, std::min<int64_t>(CHUNK_UNITS, depth - k / 4), panel + k / 4 * PANEL);
    }
    for (int n = 0; n < PANEL; ++n) panel[depth * PANEL + n] = word_of(scales[n].scale);
}

// Group of each output of a panel, number by number and divided by the output's scale: [k][n]. Zeros if the output has
// none. Lanes are outputs, so that each is computed as if alone.
using Groups = float[GROUP][PANEL];

template <class T>
void load_groups(const Rows<T>& rows, int64_t first_k, const float* inverses, Groups& groups) {
    for (int n = 0; n < PANEL; n += LANES) {
        const Vec inverse = load(inverses + n);
        for (int k = 0; k < GROUP; k += LANES) {
            Vec square[LANES];
            for (int i = 0; i < LANES; ++i) square[i] = rows.load(n + i, first_k + k);
            transpose(square);
            for (int i = 0; i < LANES; ++i) store(groups[k + i] + n, inverse == Vec{} ? Vec{} : square[i] * inverse);
        }
    }
}

Vec round(Vec x) { return (x + TO_INTEGER) - TO_INTEGER; }
Vec clamp(Vec x, float least, float most) { return smaller(larger(x, broadcast(least)), broadcast(most)); }
Vec whole_part(Vec x) { return __builtin_convertvector(__builtin_convertvector(x, Ints), Vec); }

// s (q - z) for LANES outputs of a group, in float32.
struct Int4Factors {
    Vec s, inverse, z;

    // q of a number that is not yet divided by s.
    Vec quantize(Vec x) const { return clamp(round(x * inverse) + z, 0.0f, 15.0f); }
    Vec value(Vec q) const { return s * (q - z); }
};

// The ends of a group's range, which contains zero.
struct Range {
    Vec least, most;
};

Range range_of(const Groups& groups, int n) {
    Range range = {};
    for (int k = 0; k < GROUP; ++k) {
        const Vec x = load(groups[k] + n);
        range = {smaller(x, range.least), larger(x, range.most)};
    }
    return range;
}

// Put the middle of the range between 7 and 8, as far as s (q - z) lies in -128 .. 127 for all q.
Int4Factors factors_of(const Range& range, Vec s) {
    const Vec inverse = 1.0f / s, middle = (range.least + range.most) * 0.5f;
    const Vec first = larger(15.0f - whole_part(127.0f / s), Vec{});
    const Vec last = smaller(whole_part(128.0f / s), broadcast(15.0f));
    return {s, inverse, smaller(larger(round(7.5f - middle * inverse), first), last)};
}

// Sum by halving: one order of additions on every instruction set.
Vec squared_error(const Groups& groups, int n, const Int4Factors& factors) {
    const auto square = [&](int k) {
        const Vec x = load(groups[k] + n), error = x - factors.value(factors.quantize(x));
        return error * error;
    };
    Vec sums[GROUP / 2];
    for (int k = 0; k < GROUP / 2; ++k) sums[k] = square(k) + square(k + GROUP / 2);
    for (int width = GROUP / 4; width; width /= 2)
        for (int k = 0; k < width; ++k) sums[k] += sums[k + width];
    return sums[0];
}

// Of the s with which 15 steps are as long as the range, and its neighbours, that with the smallest squared error; the
// first one on ties.
Int4Factors best_factors(const Groups& groups, int n) {
    const Range range = range_of(groups, n);
    const Vec steps = round((range.most - range.least) / 15.0f);
    Int4Factors best = {};
    Vec least = broadcast(std::numeric_limits<float>::infinity());
    for (const float step : {-1.0f, 0.0f, 1.0f}) {
        const Int4Factors factors = factors_of(range, clamp(steps + step, 1.0f, 15.0f));
        const Vec error = squared_error(groups, n, factors);
        best = {error < least ? factors.s : best.s, error < least ? factors.inverse : best.inverse,
                error < least ? factors.z : best.z};
        least = error < least ? error : least;
    }
    return best;
}

// Words of LANES outputs in a block.
void store_half_bytes(const Groups& groups, int n, const Int4Factors& factors, uint32_t* words) {
    const auto half_byte = [&](int k) { return bits(factors.quantize(load(groups[k] + n)) + TO_INTEGER) & 15u; };
    for (int k = 0; k < GROUP; k += 8, words += PANEL) {
        Words word = {};
        for (int i = 0; i < 4; ++i)
            word |= (half_byte(k + i) | half_byte(k + 4 + i) << 4u) << static_cast<uint32_t>(8 * i);
        store_words(words, word);
    }
}

template <class T>
void quantize_to_int4(const Rows<T>& rows, uint32_t* panel) {
    constexpr float MOST = 120;  // the row's largest magnitude: a multiple of the steps 8, 10, 12 and 15
    alignas(64) float inverses[PANEL] = {};
    uint32_t* scales = panel + int4_blocks(rows.K) * INT4_BLOCK_WORDS;
    std::fill(scales, scales + PANEL, 0);
    for (int n = 0; n < rows.count; ++n) {
        const Scale scale = scale_of(largest_magnitude(rows.first + n * rows.K, rows.K), MOST);
        scales[n] = word_of(scale.scale);
        inverses[n] = scale.inverse;
    }
    alignas(64) Groups groups;
    for (int64_t group = 0; group < 2 * int4_blocks(rows.K); ++group) {
        uint32_t* block = panel + group / 2 * INT4_BLOCK_WORDS;
        load_groups(rows, group * GROUP, inverses, groups);
        for (int n = 0; n < PANEL; n += LANES) {
            const Int4Factors factors = best_factors(groups, n);
            const Words bytes = round_to_integers(factors.s) | round_to_integers(factors.z) << 4u;
            for (int i = 0; i < LANES; ++i)
                reinterpret_cast<uint8_t*>(block)[2 * (n + i) + group % 2] = static_cast<uint8_t>(bytes[i]);
            store_half_bytes(groups, n, factors, block + PANEL / 2 + group % 2 * (GROUP / 8) * PANEL + n);
        }
    }
}

template <class T>
void quantize_rows(int format, const T* weight, int64_t first, int64_t O, int64_t K, uint32_t* panel) {
    const Rows<T> rows{weight + first * K, static_cast<int>(std::min<int64_t>(PANEL, O - first)), K};
    format == INT8 ? quantize_to_int8(rows, panel) : quantize_to_int4(rows, panel);
}

}  // namespace

void quantize_panel(int dtype, int format, const void* weight, int64_t first, int64_t O, int64_t K, uint32_t* panel) {
    if (dtype == BFLOAT16) return quantize_rows(format, static_cast<const uint16_t*>(weight), first, O, K, panel);
    quantize_rows(format, static_cast<const float*>(weight), first, O, K, panel);
}

}  // namespace SMOE_ISA
}  // namespace smoe
