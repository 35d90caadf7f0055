// Routing of rows to experts: (row, expert) pairs sorted by expert, then by row.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "gemm/row_tiles.h"

namespace smoe {

// Routing options per row, and the ids that the gate writes. At least k experts are allowed for each row.
struct Routing {
    const int32_t* experts_per_token;  // [T] k of each row, 1 .. max_k
    const uint8_t* allowed;            // [T, E] 0: expert disabled; null: all enabled
    int32_t* expert_ids;               // [T, max_k] written: ids by descending logit, then -1
    int64_t max_k;
};

// Result of the gate: the k experts of each row by ascending id, with their shares.
struct Choice {
    std::vector<int64_t> first;    // [T + 1] first index of each row's experts; the last entry is P
    std::vector<int32_t> experts;  // [P]
    std::vector<float> shares;     // [P]

    // T rows with k experts each if experts_per_token is null, else with experts_per_token[t].
    Choice(int64_t T, int64_t k, const int32_t* experts_per_token) : first(T + 1) {
        for (int64_t t = 0; t < T; ++t) first[t + 1] = first[t] + (experts_per_token ? experts_per_token[t] : k);
        experts.resize(first[T]);
        shares.resize(first[T]);
    }
    int64_t num_rows() const { return static_cast<int64_t>(first.size()) - 1; }
    int64_t k(int64_t row) const { return first[row + 1] - first[row]; }
};

// P pairs in sorted order. Example: row 0 chose experts 1 and 3, row 1 chose 0 and 1. The sorted pairs are (1, 0) (0,
// 1) (1, 1) (0, 3) as (row, expert), so rows = [1, 0, 1, 0] and place = [1, 3, 0, 2].
struct Pairs {
    std::vector<int32_t> rows;   // [P] row of each sorted pair
    std::vector<int64_t> place;  // [P] index of each choice among the sorted pairs
    std::vector<Tile> tiles;     // tiles over the sorted pairs
};

// Select the k largest of logits [E] among experts not yet taken: into expert_ids in descending order, into experts in
// ascending id. Ties go to lower ids. Defined for NaN too. Marks the selected ones as taken.
void select_top_k(const float* logits, int64_t E, int64_t k, uint8_t* taken, int32_t* expert_ids, int32_t* experts);

// max_tile_rows(rows): of a tile of an expert with `rows` rows.
Pairs sort_pairs(const Choice& choice, int64_t E, const std::function<int(int64_t)>& max_tile_rows);

}  // namespace smoe
