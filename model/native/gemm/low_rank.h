// Low-rank terms of LoRA adapters, y += scale * B (A x), of the rows of one product. Included by kernel files only.
//
// A row's terms depend on that row alone: A x sums over k in one partial sum per lane, B sums over the rank in
// ascending order, both in float32, whatever the other rows are. They are added to the product's sums before these are
// rounded.
#pragma once

#include <cstdint>
#include <vector>

#include "gemm/gemm.h"
#include "gemm/row_tiles.h"

namespace smoe {
namespace SMOE_ISA {

// First term of each row, or null.
using RowTerms = std::vector<const smoe_low_rank*>;

// Return the terms of T rows; empty if no row has an adapter.
RowTerms terms_of_rows(const LowRankTerms& terms, int64_t T);

class LowRankProduct {
  public:
    // Each of the rows has num_terms terms.
    LowRankProduct(RowTerms rows, int64_t num_terms);

    // True if there is nothing to add to any row.
    bool is_empty() const { return rows_.empty(); }

    // Compute scale * A x of all terms. Row p reads row row_ids[p] of x [.., K].
    void project(Pool& pool, int dtype, const void* x, const std::vector<int32_t>& row_ids, int64_t K);

    // Add all terms to sums [tile.rows][PANEL], which are outputs first_output .. first_output + PANEL - 1.
    void add(const Tile& tile, int64_t first_output, float* sums) const {
        add(tile, 0, num_terms_, first_output, sums);
    }
    // Add one of the terms.
    void add_term(const Tile& tile, int64_t term, int64_t first_output, float* sums) const {
        add(tile, term, term + 1, first_output, sums);
    }

  private:
    void add(const Tile& tile, int64_t first_term, int64_t end_term, int64_t first_output, float* sums) const;

    RowTerms rows_;
    int64_t num_terms_;
    std::vector<int64_t> first_;    // [P] first number of each row in projected_
    std::vector<float> projected_;  // of each row, term by term: [rank]
};

}  // namespace SMOE_ISA
}  // namespace smoe
