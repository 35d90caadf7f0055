#include "moe/routing.h"

#include <algorithm>

namespace smoe {

void select_top_k(const float* logits, int64_t E, int64_t k, uint8_t* taken, int32_t* expert_ids, int32_t* experts) {
    for (int64_t i = 0; i < k; ++i) {
        int64_t best = std::find(taken, taken + E, 0) - taken;
        for (int64_t e = best + 1; e < E; ++e)
            if (!taken[e] && logits[e] > logits[best]) best = e;
        taken[best] = 1;
        expert_ids[i] = static_cast<int32_t>(best);
    }
    std::copy(expert_ids, expert_ids + k, experts);
    std::sort(experts, experts + k);
}

Pairs sort_pairs(const Choice& choice, int64_t E, const std::function<int(int64_t)>& max_tile_rows) {
    const auto num_pairs = static_cast<int64_t>(choice.experts.size());
    std::vector<int64_t> first(E + 1);  // number of sorted pairs of lower experts
    for (const int32_t expert : choice.experts) ++first[expert + 1];
    for (int64_t e = 0; e < E; ++e) first[e + 1] += first[e];
    Pairs pairs{std::vector<int32_t>(num_pairs), std::vector<int64_t>(num_pairs), {}};
    for (int64_t e = 0; e < E; ++e) {
        const int64_t rows = first[e + 1] - first[e];
        append_tiles(pairs.tiles, first[e], rows, static_cast<int>(e), max_tile_rows(rows));
    }
    for (int64_t t = 0; t < choice.num_rows(); ++t)
        for (int64_t i = choice.first[t]; i < choice.first[t + 1]; ++i) {
            pairs.place[i] = first[choice.experts[i]]++;
            pairs.rows[pairs.place[i]] = static_cast<int32_t>(t);
        }
    return pairs;
}

}  // namespace smoe
