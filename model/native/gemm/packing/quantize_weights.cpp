#include <algorithm>
#include <limits>

#include "gemm/gemm.h"
#include "gemm/packing/quantize_common.h"

namespace smoe {
namespace SMOE_ISA {
namespace {

// Load GROUP numbers of a weight row from k on; zeros past its end and for absent rows.
template <class T>
void load_group(const T* row, int64_t k, int64_t K, float* group) {
    const int64_t count = row == nullptr ? 0 : std::min<int64_t>(GROUP, K - k);
    for (int64_t i = 0; i < count; ++i) group[i] = load_one(row + k + i);
    for (int64_t i = count; i < GROUP; ++i) group[i] = 0;
}

// Sum by halving: one order of additions on every instruction set.
float sum_of_group(float* x) {
    for (int width = GROUP / 2; width; width /= 2)
        for (int i = 0; i < width; ++i) x[i] += x[i + width];
    return x[0];
}

template <class T>
float largest_magnitude(const T* row, int64_t K) {
    uint32_t largest = 0;
    for (int64_t k = 0; row != nullptr && k < K; ++k)
        largest = std::max(largest, word_of(load_one(row + k)) & 0x7fffffffu);
    return float_of(largest);
}

template <class T>
void quantize_row_to_int8(const T* row, int64_t K, int n, uint32_t* panel) {
    const Scale scale = scale_of(largest_magnitude(row, K));
    const int64_t depth = ceil_div(K, 4);
    float group[GROUP];
    uint8_t q[GROUP];
    for (int64_t k = 0; k < K; k += GROUP) {
        load_group(row, k, K, group);
        for (int i = 0; i < GROUP; ++i) q[i] = word_of(group[i] * scale.inverse + TO_INTEGER) + 128;
        const int64_t units = std::min<int64_t>(GROUP / 4, depth - k / 4);
        for (int64_t u = 0; u < units; ++u) std::memcpy(panel + (k / 4 + u) * PANEL + n, q + 4 * u, 4);
    }
    panel[depth * PANEL + n] = word_of(scale.scale);
}

// Candidate values of the number farthest from zero; the scale follows, and other numbers are clipped to -8 .. 7. The
// larger candidates clip that number and give the rest of the group finer steps.
constexpr float FARTHEST[] = {-8.0f, -7.0f, -7.5f, -8.5f, -9.0f};

float farthest_from_zero(const float* group) {
    float most = 0, least = 0;
    for (int i = 0; i < GROUP; ++i) {
        most = std::max(most, group[i]);
        least = std::min(least, group[i]);
    }
    return most >= -least ? most : least;
}

// Round and clip a group to -8 .. 7, as floats.
void round_group(const float* group, float scale, float* q) {
    const float inverse = scale == 0 ? 0 : 1 / scale;
    for (int i = 0; i < GROUP; ++i) {
        const float rounded = (group[i] * inverse + TO_INTEGER) - TO_INTEGER;
        q[i] = std::min(std::max(rounded, -8.0f), 7.0f);
    }
}

float squared_error(const float* group, float scale, const float* q) {
    float squares[GROUP];
    for (int i = 0; i < GROUP; ++i) {
        const float error = group[i] - scale * q[i];
        squares[i] = error * error;
    }
    return sum_of_group(squares);
}

bool is_finite(const float* group) {
    float zeros[GROUP];
    for (int i = 0; i < GROUP; ++i) zeros[i] = group[i] * 0;
    return sum_of_group(zeros) == 0;
}

// Return the bfloat16 scale with the smallest squared error; the first one on ties.
uint16_t best_scale(const float* group) {
    if (!is_finite(group)) return narrow(std::numeric_limits<float>::quiet_NaN());
    const float farthest = farthest_from_zero(group);
    uint16_t best = 0;
    float least = std::numeric_limits<float>::infinity(), q[GROUP];
    for (const float target : FARTHEST) {
        const uint16_t scale = narrow(farthest / target);
        round_group(group, widen(scale), q);
        const float error = squared_error(group, widen(scale), q);
        if (error < least) least = error, best = scale;
    }
    return best;
}

template <class T>
void quantize_row_to_int4(const T* row, int64_t K, int n, uint32_t* panel) {
    float group[GROUP], q[GROUP];
    for (int64_t k = 0; k < K; k += GROUP, panel += INT4_PANEL_WORDS) {
        load_group(row, k, K, group);
        const uint16_t scale = best_scale(group);
        std::memcpy(reinterpret_cast<uint16_t*>(panel) + n, &scale, sizeof scale);
        round_group(group, widen(scale), q);
        uint8_t halves[GROUP];
        for (int i = 0; i < GROUP; ++i) halves[i] = word_of(q[i] + 8 + TO_INTEGER) & 15;
        for (int pair = 0; pair < GROUP / 8; ++pair) {
            uint8_t bytes[4];
            for (int i = 0; i < 4; ++i) bytes[i] = halves[8 * pair + i] | halves[8 * pair + 4 + i] << 4;
            std::memcpy(panel + PANEL / 2 + pair * PANEL + n, bytes, sizeof bytes);
        }
    }
}

template <class T>
void quantize_rows(int format, const T* weight, int64_t first, int64_t O, int64_t K, uint32_t* panel) {
    for (int n = 0; n < PANEL; ++n) {
        const T* row = first + n < O ? weight + (first + n) * K : nullptr;
        format == INT8 ? quantize_row_to_int8(row, K, n, panel) : quantize_row_to_int4(row, K, n, panel);
    }
}

}  // namespace

void quantize_panel(int dtype, int format, const void* weight, int64_t first, int64_t O, int64_t K, uint32_t* panel) {
    if (dtype == BFLOAT16) return quantize_rows(format, static_cast<const uint16_t*>(weight), first, O, K, panel);
    quantize_rows(format, static_cast<const float*>(weight), first, O, K, panel);
}

}  // namespace SMOE_ISA
}  // namespace smoe
