#include "moe/gate_logits.h"

#include <algorithm>
#include <cstring>

#include "gemm/quant_formats.h"
#include "runtime/isa.h"

namespace smoe {
namespace {

constexpr int LANES = 8;  // partial sums: number d of a row goes into sum d % LANES

float number_at(const float* row, int64_t d) { return row[d]; }

float number_at(const uint16_t* row, int64_t d) {
    const uint32_t word = uint32_t{row[d]} << 16;
    float number;
    std::memcpy(&number, &word, sizeof number);
    return number;
}

// The products are exact in float64, so that a fused multiply-add rounds as two operations do.
template <class Number>
double dot(const Number* row, const float* gate, int64_t D) {
    double sums[LANES]{};
    int64_t d = 0;
    for (; d + LANES <= D; d += LANES)
        for (int lane = 0; lane < LANES; ++lane)
            sums[lane] += double{number_at(row, d + lane)} * double{gate[d + lane]};
    for (int lane = 0; d + lane < D; ++lane) sums[lane] += double{number_at(row, d + lane)} * double{gate[d + lane]};
    for (int width = LANES / 2; width; width /= 2)
        for (int lane = 0; lane < width; ++lane) sums[lane] += sums[lane + width];
    return sums[0];
}

constexpr int64_t ROWS_PER_TASK = 4;

template <class Number>
void report(Pool& pool, const Number* x, const int64_t* rows, const float* gate, float* logits, int64_t P, int64_t D,
            int64_t E) {
    pool.parallel_for(ceil_div(P, ROWS_PER_TASK), [=](int64_t task) {
        const int64_t last = std::min(P, (task + 1) * ROWS_PER_TASK);
        for (int64_t p = task * ROWS_PER_TASK; p < last; ++p)
            for (int64_t e = 0; e < E; ++e)
                logits[p * E + e] = static_cast<float>(dot(x + (rows ? rows[p] : p) * D, gate + e * D, D));
    });
}

}  // namespace

void report_gate_logits(Pool& pool, int dtype, const void* x, const int64_t* rows, const float* gate, float* logits,
                        int64_t P, int64_t D, int64_t E) {
    if (dtype == BFLOAT16)
        report(pool, static_cast<const uint16_t*>(x), rows, gate, logits, P, D, E);
    else
        report(pool, static_cast<const float*>(x), rows, gate, logits, P, D, E);
}

}  // namespace smoe
