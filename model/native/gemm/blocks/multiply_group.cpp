// Products of groups of tiles with the block formats that AMX multiplies.
#include "gemm/blocks/amx_superblocks.h"
#include "gemm/microkernel.h"

namespace smoe {
namespace SMOE_ISA {

#if defined(__AMX_TILE__)

void multiply_block_group(AmxTiles& registers, int format, const TileGroup& group, const PackedTiles& x,
                          const uint32_t* panel, int64_t K, float* sums) {
    const auto multiply = [&](auto product) { product(registers, group, x, panel, K / 256, sums); };
    switch (format) {
        case Q2_K: return multiply(multiply_group_of_tiles<Q2KBlock, StoredBlock>);
        case Q3_K: return multiply(multiply_group_of_tiles<Q3KBlock, StoredBlock>);
        case Q4_K: return multiply(multiply_group_of_tiles<Q4KBlock, StoredBlock>);
        case Q5_K: return multiply(multiply_group_of_tiles<Q5KBlock, StoredBlock>);
        case Q6_K: return multiply(multiply_group_of_tiles<Q6KBlock, StoredBlock>);
        case IQ4_XS: return multiply(multiply_group_of_tiles<Iq4XsBlock, StoredBlock>);
        case IQ3_S: return multiply(multiply_group_of_tiles<Iq3SBlock, CodedBlock>);
        case IQ3_XXS: return multiply(multiply_group_of_tiles<Iq3XxsBlock, CodedBlock>);
        case IQ2_S: return multiply(multiply_group_of_tiles<Iq2SBlock, CodedBlock>);
        case IQ2_XS: return multiply(multiply_group_of_tiles<Iq2XsBlock, CodedBlock>);
        case IQ2_XXS: return multiply(multiply_group_of_tiles<Iq2XxsBlock, CodedBlock>);
    }
}

#endif

}  // namespace SMOE_ISA
}  // namespace smoe
