// SwiGLU experts, w2(silu(w1 x) * (w3 x)), over rows sorted by expert.
#pragma once

#include <cstdint>

#include "gemm/gemm.h"
#include "group/group.h"
#include "moe/routing.h"
#include "store/expert_store.h"

namespace smoe {

struct Expert {
    Matrix w1, w3;  // [F, D]
    Matrix w2;      // [D, F]
};

// E experts. Each of the three matrices has one format in all of them. In a group w1 and w3 have the outputs of F from
// first_F on, and w2 some of D.
struct Experts {
    const Expert* experts;
    int64_t E, D, F;
    Group* group;  // null: one rank
    int64_t first_F;
    ExpertStore* store;     // null: the experts lie at their addresses
    int64_t stored_layer;   // number of this layer in the store
    LowRankTerms low_rank;  // three of each expert: of w1, w3 and w2

    int64_t num_hidden() const { return experts[0].w1.outputs; }   // F, or this rank's part
    int64_t num_outputs() const { return experts[0].w2.outputs; }  // D, or this rank's part
    const Expert& operator[](int64_t expert) const { return experts[expert]; }
};

// Memory for the products of P sorted (row, expert) pairs, in the pool's scratch memory.
struct ProductMemory {
    uint32_t *x1, *x3, *hidden;  // packed rows for w1, w3 (null: the same) and w2
    float *whole, *part;         // hidden rows before they are packed: [P, F] and, in a group, [P, num_hidden()]
    float* outputs;              // [P, num_outputs()]; the memory of `whole` unless the products are computed in parts
};

SMOE_PER_ISA(ProductMemory reserve_products(Pool& pool, int dtype, const Experts& weights, int64_t num_pairs,
                                            bool in_parts))
// Compute the outputs of the pairs in some of their tiles: of all, or in parts, whose order changes no bit.
SMOE_PER_ISA(void multiply_experts(Pool& pool, int dtype, const void* x, const Experts& weights, const Pairs& pairs,
                                   const std::vector<Tile>& tiles, const ProductMemory& memory))

}  // namespace smoe
