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

// Group of each output of a panel, number by number: [k][n]. Lanes are outputs, so that each is computed as if alone.
using Groups = float[GROUP][PANEL];

template <class T>
void load_groups(const Rows<T>& rows, int64_t first_k, Groups& groups) {
    for (int n = 0; n < PANEL; n += LANES)
        for (int k = 0; k < GROUP; k += LANES) {
            Vec square[LANES];
            for (int i = 0; i < LANES; ++i) square[i] = rows.load(n + i, first_k + k);
            transpose(square);
            for (int i = 0; i < LANES; ++i) store(groups[k + i] + n, square[i]);
        }
}

// Candidate values of the number farthest from zero; the scale follows, and other numbers are clipped to -8 .. 7. The
// larger candidates clip that number and give the rest of the group finer steps.
constexpr float FARTHEST[] = {-8.0f, -7.0f, -7.5f, -8.5f, -9.0f};

Vec farthest_from_zero(const Groups& groups, int n) {
    Vec most = {}, least = {};
    for (int k = 0; k < GROUP; ++k) {
        const Vec x = load(groups[k] + n);
        most = x > most ? x : most;
        least = x < least ? x : least;
    }
    return most >= -least ? most : least;
}

Vec inverse_of(Vec scale) { return scale == Vec{} ? Vec{} : 1.0f / scale; }

// Round and clip a number to -8 .. 7. NaN stays NaN.
inline Vec round_to_int4(Vec x, Vec inverse) {
    const Vec rounded = (x * inverse + TO_INTEGER) - TO_INTEGER, least = broadcast(-8.0f), most = broadcast(7.0f);
    const Vec raised = rounded < least ? least : rounded;
    return raised > most ? most : raised;
}

Vec round_to_bfloat16(Vec x) { return from_bits((bits(x) + 0x7fffu + (bits(x) >> 16 & 1u)) & 0xffff0000u); }

// Sum by halving: one order of additions on every instruction set.
Vec squared_error(const Groups& groups, int n, Vec scale) {
    const Vec inverse = inverse_of(scale);
    const auto square = [&](int k) {
        const Vec x = load(groups[k] + n), error = x - scale * round_to_int4(x, inverse);
        return error * error;
    };
    Vec sums[GROUP / 2];
    for (int k = 0; k < GROUP / 2; ++k) sums[k] = square(k) + square(k + GROUP / 2);
    for (int width = GROUP / 4; width; width /= 2)
        for (int k = 0; k < width; ++k) sums[k] += sums[k + width];
    return sums[0];
}

// Zeros for groups of finite numbers, NaN for others.
Vec times_zero(const Groups& groups, int n) {
    Vec zeros = {};
    for (int k = 0; k < GROUP; ++k) zeros += load(groups[k] + n) * 0.0f;
    return zeros;
}

// Return the bfloat16 scales with the smallest squared error; the first one on ties.
Vec best_scale(const Groups& groups, int n) {
    const Vec farthest = farthest_from_zero(groups, n);
    Vec best = {}, least = broadcast(std::numeric_limits<float>::infinity());
    for (const float target : FARTHEST) {
        const Vec scale = round_to_bfloat16(farthest / target), error = squared_error(groups, n, scale);
        best = error < least ? scale : best;
        least = error < least ? error : least;
    }
    return times_zero(groups, n) == Vec{} ? best : broadcast(std::numeric_limits<float>::quiet_NaN());
}

// Outputs n .. n + LANES - 1 of a panel's group.
void quantize_groups(const Groups& groups, int n, uint32_t* panel) {
    const Vec scale = best_scale(groups, n), inverse = inverse_of(scale);
    store(reinterpret_cast<uint16_t*>(panel) + n, scale);
    const auto half_byte = [&](int k) {
        return bits(round_to_int4(load(groups[k] + n), inverse) + 8.0f + TO_INTEGER) & 15u;
    };
    for (int k = 0; k < GROUP; k += 8) {
        Words words = {};
        for (int i = 0; i < 4; ++i)
            words |= (half_byte(k + i) | half_byte(k + 4 + i) << 4u) << static_cast<uint32_t>(8 * i);
        std::memcpy(panel + PANEL / 2 + k / 8 * PANEL + n, &words, sizeof words);
    }
}

template <class T>
void quantize_to_int4(const Rows<T>& rows, uint32_t* panel) {
    alignas(64) Groups groups;
    for (int64_t k = 0; k < rows.K; k += GROUP, panel += INT4_PANEL_WORDS) {
        load_groups(rows, k, groups);
        for (int n = 0; n < PANEL; n += LANES) quantize_groups(groups, n, panel);
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
