#include "gemm/low_rank.h"

#include <algorithm>
#include <functional>
#include <type_traits>
#include <utility>

#include "gemm/low_rank_kernels.h"

namespace smoe {
namespace SMOE_ISA {
namespace {

// Call use(a, b) with the term's matrices.
template <class Use>
void with_matrices(const smoe_low_rank& term, Use&& use) {
    if (term.dtype == BFLOAT16)
        use(static_cast<const uint32_t*>(term.a), static_cast<const uint32_t*>(term.b));
    else
        use(static_cast<const float*>(term.a), static_cast<const float*>(term.b));
}

// Call use(number of rows as a constant).
template <int COUNT = ROWS_AT_ONCE, class Use>
void with_count(int64_t count, Use&& use) {
    if constexpr (COUNT > 1)
        if (count < COUNT) return with_count<COUNT - 1>(count, use);
    use(std::integral_constant<int, COUNT>());
}

// Numbers of a row and term in projected_: the sums of all ranks, of which in the end the first are A x.
int64_t projected_size(const smoe_low_rank& term) { return padded_rank(term.rank) * SUMS; }

// Outputs that a term has among first_output .. first_output + PANEL - 1, numbered within the term.
struct OwnOutputs {
    int64_t first, end;
};

OwnOutputs own_outputs(const smoe_low_rank& term, int64_t first_output) {
    if (!term.rank) return {0, 0};
    const int64_t first = first_output - term.first_output;
    return {std::max<int64_t>(first, 0), std::min(first + PANEL, term.outputs)};
}

// Add one term to a few rows' sums, outputs first_output .. first_output + PANEL - 1. Panels of b begin at the term's
// first output, so that two of them may lie in the rows' panel.
template <int ROWS, class Unit>
void add_to_rows(const smoe_low_rank& term, const Unit* b, const float* const* projected, int64_t first_output,
                 float* const* sums) {
    const OwnOutputs own = own_outputs(term, first_output);
    for (int64_t output = own.first, count; output < own.end; output += count) {
        const int64_t lane = output % PANEL, column = term.first_output + output - first_output;
        count = std::min(PANEL - lane, own.end - output);
        alignas(64) float products[ROWS][PANEL];
        multiply_panel<ROWS>(projected, b + output / PANEL * panel_units<Unit>(term.rank), term.rank, products);
        for (int m = 0; m < ROWS; ++m) add_numbers(products[m] + lane, count, sums[m] + column);
    }
}

void prefetch_panel_of(const smoe_low_rank& term, int64_t first_output) {
    const OwnOutputs own = own_outputs(term, first_output);
    if (own.first >= own.end) return;
    with_matrices(term, [&](auto*, auto* b) {
        const int64_t units = panel_units<std::remove_cv_t<std::remove_pointer_t<decltype(b)>>>(term.rank);
        prefetch_units(b + own.first / PANEL * units, units);
    });
}

// A few rows of a tile that have the same terms.
struct TileRows {
    const float* projected[ROWS_AT_ONCE];
    float* sums[ROWS_AT_ONCE];
    int count = 0;

    void push(const float* row, float* row_sums) {
        projected[count] = row;
        sums[count++] = row_sums;
    }

    void add(const smoe_low_rank* terms, int64_t first_term, int64_t end_term, int64_t first_output) {
        for (int64_t i = 0; i < end_term; ++i) {
            if (i >= first_term && terms[i].rank) add_term(terms[i], first_output);
            for (int m = 0; m < count; ++m) projected[m] += projected_size(terms[i]);
        }
        count = 0;
    }

  private:
    void add_term(const smoe_low_rank& term, int64_t first_output) const {
        with_matrices(term, [&](auto*, auto* b) {
            with_count(count, [&](auto rows) { add_to_rows<rows()>(term, b, projected, first_output, sums); });
        });
    }
};

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
        for (int64_t i = 0; rows_[p] && i < num_terms; ++i) total += projected_size(rows_[p][i]);
        if (total == first_[p]) rows_[p] = nullptr;
    }
    if (!total) rows_.clear();
    projected_.resize(total);
    make_blocks();
}

void LowRankProduct::make_blocks() {
    const auto num_rows = static_cast<int64_t>(rows_.size());
    for (int64_t p = 0; p < num_rows; ++p)
        if (rows_[p]) order_.push_back(p);
    std::stable_sort(order_.begin(), order_.end(),
                     [&](int64_t p, int64_t q) { return std::less<const smoe_low_rank*>()(rows_[p], rows_[q]); });
    previous_.assign(num_rows, -1);
    next_.assign(num_rows, num_rows);
    for (size_t i = 0; i < order_.size(); ++i) {
        const bool is_same = i && rows_[order_[i]] == rows_[order_[i - 1]];
        if (is_same) {
            previous_[order_[i]] = order_[i - 1];
            next_[order_[i - 1]] = order_[i];
        }
        if (!is_same || blocks_.back().count == ROWS_AT_ONCE) blocks_.push_back({static_cast<int64_t>(i), 0});
        ++blocks_.back().count;
    }
}

SideTasks LowRankProduct::projection(int dtype, const void* x, const std::vector<int32_t>& row_ids, int64_t K) {
    return {static_cast<int64_t>(blocks_.size()) * num_terms_, [this, dtype, x, &row_ids, K](int64_t task) {
                const Block& block = blocks_[task / num_terms_];
                if (dtype == BFLOAT16)
                    project(block, task % num_terms_, static_cast<const uint16_t*>(x), row_ids, K);
                else
                    project(block, task % num_terms_, static_cast<const float*>(x), row_ids, K);
            }};
}

template <class X>
void LowRankProduct::project(const Block& block, int64_t index, const X* x, const std::vector<int32_t>& row_ids,
                             int64_t K) {
    const int64_t* rows = order_.data() + block.first;
    const smoe_low_rank* terms = rows_[rows[0]];
    const smoe_low_rank& term = terms[index];
    int64_t before = 0;
    for (int64_t i = 0; i < index; ++i) before += projected_size(terms[i]);
    const X* from[ROWS_AT_ONCE];
    float* sums[ROWS_AT_ONCE];
    for (int64_t m = 0; m < block.count; ++m) {
        from[m] = x + row_ids[rows[m]] * K;
        sums[m] = projected_.data() + first_[rows[m]] + before;
    }
    with_matrices(term, [&](auto* a, auto*) {
        with_count(block.count, [&](auto count) { multiply_rows<count()>(from, a, K, padded_rank(term.rank), sums); });
    });
    for (int64_t m = 0; m < block.count; ++m) reduce(sums[m], term.rank, term.scale);
}

void LowRankProduct::prefetch(const Tile& tile, int64_t first_output) const {
    for (int64_t p = tile.first_row; p < tile.first_row + tile.rows; ++p)
        if (is_first_in(tile, p))
            for (int64_t i = 0; i < num_terms_; ++i) prefetch_panel_of(rows_[p][i], first_output);
}

void LowRankProduct::add(const Tile& tile, int64_t first_term, int64_t end_term, int64_t first_output,
                         float* sums) const {
    const int64_t end = tile.first_row + tile.rows;
    TileRows rows;
    for (int64_t p = tile.first_row; p < end; ++p) {
        if (!is_first_in(tile, p)) continue;
        for (int64_t row = p; row < end; row = next_[row]) {
            rows.push(projected_.data() + first_[row], sums + (row - tile.first_row) * PANEL);
            if (rows.count == ROWS_AT_ONCE || next_[row] >= end) rows.add(rows_[p], first_term, end_term, first_output);
        }
    }
}

}  // namespace SMOE_ISA
}  // namespace smoe
