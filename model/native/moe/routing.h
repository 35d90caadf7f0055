// Which rows go to which experts: pairs (row, expert) sorted by expert, within one by row.
#pragma once

#include <cstdint>
#include <vector>

#include "gemm/row_tiles.h"

namespace smoe {

// What the gate is asked for, row by row, and where its answer goes. A row has at least k experts that it may take.
struct Routing {
    const int32_t* experts_per_token;  // [T] k of each row, 1 .. max_k
    const uint8_t* allowed;            // [T, E] 0: not this one; null: all
    int32_t* chosen;                   // [T, max_k] written: ids in descending order of their logits, -1 behind them
    int64_t max_k;
};

// What the gate chose: for each row its k experts in ascending id, and their shares.
struct Choice {
    std::vector<int64_t> first;    // [T + 1] where each row's experts begin; P stand behind the last
    std::vector<int32_t> experts;  // [P]
    std::vector<float> shares;     // [P]

    // Of T rows with k experts each, where experts_per_token is null; else with as many as it says.
    Choice(int64_t T, int64_t k, const int32_t* experts_per_token) : first(T + 1) {
        for (int64_t t = 0; t < T; ++t) first[t + 1] = first[t] + (experts_per_token ? experts_per_token[t] : k);
        experts.resize(first[T]);
        shares.resize(first[T]);
    }
    int64_t num_rows() const { return static_cast<int64_t>(first.size()) - 1; }
    int64_t k(int64_t row) const { return first[row + 1] - first[row]; }
};

// P pairs in sorted order. Example: row 0 chose experts 1 and 3, row 1 chose 0 and 1. The sorted pairs are
// (1, 0) (0, 1) (1, 1) (0, 3) as (row, expert), so rows = [1, 0, 1, 0] and place = [1, 3, 0, 2].
struct Pairs {
    std::vector<int32_t> rows;   // [P] the row of each sorted pair
    std::vector<int64_t> place;  // [P] where among the sorted pairs each choice stands
    std::vector<Tile> tiles;     // of the sorted pairs
};

// The k largest of logits [E] among those not taken: to chosen in descending order, to experts in ascending id. Of
// equal ones the lower ids go first. Defined for NaN too. Those chosen are taken then.
void choose(const float* logits, int64_t E, int64_t k, uint8_t* taken, int32_t* chosen, int32_t* experts);

Pairs sort_pairs(const Choice& choice, int64_t E, int max_tile_rows);

}  // namespace smoe
