// Which rows go to which experts: pairs (row, expert) sorted by expert, within one by row.
#pragma once

#include <cstdint>
#include <vector>

#include "rows.h"

namespace smoe {

// What the gate chose: for each row k experts in ascending id, and their shares.
struct Choice {
    int64_t T, k;
    std::vector<int32_t> experts;  // [T * k]
    std::vector<float> shares;     // [T * k]

    Choice(int64_t T, int64_t k) : T(T), k(k), experts(T * k), shares(T * k) {}
};

// P = T * k pairs in sorted order. Example, k = 2: row 0 chose experts 1 and 3, row 1 chose 0 and 1. The sorted pairs
// are (1, 0) (0, 1) (1, 1) (0, 3) as (row, expert), so rows = [1, 0, 1, 0] and place = [1, 3, 0, 2].
struct Pairs {
    std::vector<int32_t> rows;   // [P] the row of each sorted pair
    std::vector<int64_t> place;  // [T * k] where among the sorted pairs each choice stands
    std::vector<Tile> tiles;     // of the sorted pairs
};

// The k largest of logits [E], in ascending id; of equal ones the lower ids. Defined for NaN too. taken [E] is zeros.
void choose(const float* logits, int64_t E, int64_t k, uint8_t* taken, int32_t* experts);

Pairs sort_pairs(const Choice& choice, int64_t E);

}  // namespace smoe
