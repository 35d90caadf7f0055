// Low-rank terms of LoRA adapters, y += scale * B (A x), of the rows of one product. Included by kernel files only.
//
// A row's terms depend on that row alone. Of A x each rank has four sums, of the k that leave 0, 1, 2 and 3 when they
// are divided by four, k ascending; B sums over the rank in ascending order; all in float32, and added to the product's
// sums before these are rounded. Rows with the same terms are computed a few at a time, so that A and B are read once
// for all of them: each row has sums of its own, and so the same bits in any company.
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

    // Return the tasks that compute scale * A x of all terms. Row p reads row row_ids[p] of x [.., K]; `row_ids` and x
    // must outlive the tasks.
    SideTasks projection(int dtype, const void* x, const std::vector<int32_t>& row_ids, int64_t K);

    // Fetch what add() will read.
    void prefetch(const Tile& tile, int64_t first_output) const;
    // Add all terms to sums [tile.rows][PANEL], which are outputs first_output .. first_output + PANEL - 1.
    void add(const Tile& tile, int64_t first_output, float* sums) const {
        add(tile, 0, num_terms_, first_output, sums);
    }
    // Add one of the terms.
    void add_term(const Tile& tile, int64_t term, int64_t first_output, float* sums) const {
        add(tile, term, term + 1, first_output, sums);
    }

  private:
    // A few rows with the same terms: order_[first] .. order_[first + count - 1].
    struct Block {
        int64_t first, count;
    };

    void make_blocks();
    void add(const Tile& tile, int64_t first_term, int64_t end_term, int64_t first_output, float* sums) const;
    bool is_first_in(const Tile& tile, int64_t row) const { return rows_[row] && previous_[row] < tile.first_row; }
    template <class X>
    void project(const Block& block, int64_t term, const X* x, const std::vector<int32_t>& row_ids, int64_t K);

    RowTerms rows_;  // [P]
    int64_t num_terms_;
    std::vector<int64_t> order_;     // rows that have terms, those with the same terms side by side
    std::vector<int64_t> previous_;  // [P] the row before with the same terms, or -1
    std::vector<int64_t> next_;      // [P] the row behind with the same terms, or P
    std::vector<Block> blocks_;
    std::vector<int64_t> first_;    // [P] first number of each row in projected_
    std::vector<float> projected_;  // of each row, term by term: [projected_size(term)], of which [rank] are A x
};

}  // namespace SMOE_ISA
}  // namespace smoe
