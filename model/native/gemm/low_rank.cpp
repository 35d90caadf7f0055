#include "gemm/low_rank.h"

#include <algorithm>
#include <utility>

#include "simd/vec_tail.h"

namespace smoe {
namespace SMOE_ISA {
namespace {

// Compute products[i] = scale * (row i of a) x for NUM rows of a [.., K].
template <int NUM, class X, class Weight>
void multiply_rows(const X* x, const Weight* a, int64_t K, float scale, float* products) {
    Vec sums[NUM] = {};
    int64_t k = 0;
    for (; k + LANES <= K; k += LANES) {
        const Vec numbers = load(x + k);
#pragma GCC unroll 4
        for (int i = 0; i < NUM; ++i) sums[i] = fma(numbers, load(a + i * K + k), sums[i]);
    }
    if (k < K) {
        const Vec numbers = load_first(x + k, K - k);
#pragma GCC unroll 4
        for (int i = 0; i < NUM; ++i) sums[i] = fma(numbers, load_first(a + i * K + k, K - k), sums[i]);
    }
    for (int i = 0; i < NUM; ++i) products[i] = scale * sum(sums[i]);
}

template <class X, class Weight>
void project_row(const X* x, const Weight* a, const smoe_low_rank& term, int64_t K, float* projected) {
    int64_t j = 0;
    for (; j + 4 <= term.rank; j += 4) multiply_rows<4>(x, a + j * K, K, term.scale, projected + j);
    for (; j < term.rank; ++j) multiply_rows<1>(x, a + j * K, K, term.scale, projected + j);
}

template <class X>
void project_term(const X* x, const smoe_low_rank& term, int64_t K, float* projected) {
    if (term.dtype == BFLOAT16)
        project_row(x, static_cast<const uint16_t*>(term.a), term, K, projected);
    else
        project_row(x, static_cast<const float*>(term.a), term, K, projected);
}

// Compute out [PANEL] = projected [rank] times a panel of b, [rank][PANEL].
template <class Weight>
void multiply_panel(const float* projected, const Weight* panel, int64_t rank, float* out) {
    Vec sums[PANEL / LANES] = {};
    for (int64_t j = 0; j < rank; ++j, panel += PANEL) {
        const Vec factor = broadcast(projected[j]);
#pragma GCC unroll 8
        for (int part = 0; part < PANEL / LANES; ++part)
            sums[part] = fma(factor, load(panel + part * LANES), sums[part]);
    }
#pragma GCC unroll 8
    for (int part = 0; part < PANEL / LANES; ++part) store(out + part * LANES, sums[part]);
}

void multiply_panel_of(const smoe_low_rank& term, const float* projected, int64_t panel, float* out) {
    const int64_t first = panel * term.rank * PANEL;
    if (term.dtype == BFLOAT16)
        multiply_panel(projected, static_cast<const uint16_t*>(term.b) + first, term.rank, out);
    else
        multiply_panel(projected, static_cast<const float*>(term.b) + first, term.rank, out);
}

// Add one term to one row's sums, outputs first_output .. first_output + PANEL - 1: those that the term has. Panels of
// b begin at the term's first output, so that two of them may lie in the row's panel.
void add_to_row(const smoe_low_rank& term, const float* projected, int64_t first_output, float* sums) {
    const int64_t end = std::min(first_output + PANEL, term.first_output + term.outputs);
    int64_t output = std::max(first_output, term.first_output);
    while (output < end) {
        const int64_t own = output - term.first_output, lane = own % PANEL;
        const int64_t count = std::min(PANEL - lane, end - output);
        alignas(64) float products[PANEL];
        multiply_panel_of(term, projected, own / PANEL, products);
        for (int64_t n = 0; n < count; ++n) sums[output - first_output + n] += products[lane + n];
        output += count;
    }
}

}  // namespace

RowTerms terms_of_rows(const LowRankTerms& terms, int64_t T) {
    RowTerms rows;
    if (!terms.adapters) return rows;
    rows.resize(T);
    for (int64_t t = 0; t < T; ++t) rows[t] = terms.adapters[t] ? terms.adapters[t] + terms.first : nullptr;
    return rows;
}

LowRankProduct::LowRankProduct(RowTerms rows, int64_t num_terms)
    : rows_(std::move(rows)), num_terms_(num_terms), first_(rows_.size()) {
    int64_t total = 0;
    for (size_t p = 0; p < rows_.size(); ++p) {
        first_[p] = total;
        for (int64_t i = 0; rows_[p] && i < num_terms; ++i) total += rows_[p][i].rank;
    }
    if (!total) rows_.clear();
    projected_.resize(total);
}

void LowRankProduct::project(Pool& pool, int dtype, const void* x, const std::vector<int32_t>& row_ids, int64_t K) {
    pool.parallel_for(static_cast<int64_t>(rows_.size()), [&](int64_t p) {
        if (!rows_[p]) return;
        float* projected = projected_.data() + first_[p];
        for (int64_t i = 0; i < num_terms_; ++i) {
            const smoe_low_rank& term = rows_[p][i];
            if (dtype == BFLOAT16)
                project_term(static_cast<const uint16_t*>(x) + row_ids[p] * K, term, K, projected);
            else
                project_term(static_cast<const float*>(x) + row_ids[p] * K, term, K, projected);
            projected += term.rank;
        }
    });
}

void LowRankProduct::add(const Tile& tile, int64_t first_term, int64_t end_term, int64_t first_output,
                         float* sums) const {
    for (int m = 0; m < tile.rows; ++m) {
        const smoe_low_rank* terms = rows_[tile.first_row + m];
        if (!terms) continue;
        const float* projected = projected_.data() + first_[tile.first_row + m];
        for (int64_t i = 0; i < end_term; projected += terms[i++].rank)
            if (i >= first_term && terms[i].rank) add_to_row(terms[i], projected, first_output, sums + m * PANEL);
    }
}

}  // namespace SMOE_ISA
}  // namespace smoe
