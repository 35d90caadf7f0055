// Products of groups of tiles with block formats on AMX.
#include "gemm/blocks/amx_blocks.h"

#include <algorithm>

#include "gemm/blocks/amx_small_blocks.h"
#include "gemm/blocks/amx_superblocks.h"
#include "gemm/blocks/gemm_groups.h"

namespace smoe {
namespace SMOE_ISA {

#if defined(__AMX_TILE__)

namespace {

// sums [tiles][MAX_TILE_ROWS][PANEL] = each tile of the group times the panel. A few blocks at a time, which stay
// unpacked in the first-level cache while the tiles pass.
template <class Kernel>
void multiply(AmxTiles& registers, const TileGroup& group, const PackedTiles& x, const uint32_t* panel,
              int64_t num_blocks, float* sums) {
    int most_rows = 0;
    for (const Tile& tile : group) most_rows = std::max(most_rows, tile.rows);
    registers.shape_square(most_rows, Kernel::LINE_UNITS);  // one shape for all: the rows of tiles differ by one
    std::fill(sums, sums + group.count * TILE_SUMS, 0.0f);
    Kernel kernel;
    for (int64_t first = 0; first < num_blocks; first += Kernel::BLOCKS) {
        const auto blocks = static_cast<int>(std::min<int64_t>(Kernel::BLOCKS, num_blocks - first));
        kernel.unpack(panel + first * Kernel::PANEL_WORDS, blocks);
        compiler_barrier();
        float* out = sums;
        for (const Tile& tile : group) {
            kernel.add(x.of(tile) + first * Kernel::ROW_WORDS * tile.rows, tile.rows, blocks, out);
            out += TILE_SUMS;
        }
    }
}

template <class Format>
using AmxCodes = AmxSuperblocks<Format, UnpackedCodes<Format>>;

using Product = void (*)(AmxTiles& registers, const TileGroup& group, const PackedTiles& x, const uint32_t* panel,
                         int64_t num_blocks, float* sums);

Product product_of(int format) {
    switch (format) {
        case Q4_0: return multiply<AmxSmallBlocks<Gguf32<Q4_0, false, false>>>;
        case Q4_1: return multiply<AmxSmallBlocks<Gguf32<Q4_1, true, false>>>;
        case Q5_0: return multiply<AmxSmallBlocks<Gguf32<Q5_0, false, true>>>;
        case Q5_1: return multiply<AmxSmallBlocks<Gguf32<Q5_1, true, true>>>;
        case IQ4_NL: return multiply<AmxSmallBlocks<GgufIq4>>;
        case INT4_G32: return multiply<AmxSmallBlocks<Int4Group<INT4_G32>>>;
        case INT4_G64: return multiply<AmxSmallBlocks<Int4Group<INT4_G64>>>;
        case INT4_G128: return multiply<AmxSmallBlocks<Int4Group<INT4_G128>>>;
        case INT8_G32: return multiply<AmxSmallBlocks<Int8Group<INT8_G32>>>;
        case INT8_G64: return multiply<AmxSmallBlocks<Int8Group<INT8_G64>>>;
        case INT8_G128: return multiply<AmxSmallBlocks<Int8Group<INT8_G128>>>;
        case AFFINE4_G32: return multiply<AmxSmallBlocks<Affine4Group<AFFINE4_G32>>>;
        case AFFINE4_G64: return multiply<AmxSmallBlocks<Affine4Group<AFFINE4_G64>>>;
        case AFFINE4_G128: return multiply<AmxSmallBlocks<Affine4Group<AFFINE4_G128>>>;
        case AFFINE8_G32: return multiply<AmxSmallBlocks<Affine8Group<AFFINE8_G32>>>;
        case AFFINE8_G64: return multiply<AmxSmallBlocks<Affine8Group<AFFINE8_G64>>>;
        case AFFINE8_G128: return multiply<AmxSmallBlocks<Affine8Group<AFFINE8_G128>>>;
        case Q2_K: return multiply<AmxSuperblocks<Q2KBlock>>;
        case Q3_K: return multiply<AmxSuperblocks<Q3KBlock>>;
        case Q4_K: return multiply<AmxSuperblocks<Q4KBlock>>;
        case Q5_K: return multiply<AmxSuperblocks<Q5KBlock>>;
        case Q6_K: return multiply<AmxSuperblocks<Q6KBlock>>;
        case IQ4_XS: return multiply<AmxSuperblocks<Iq4XsBlock>>;
        case IQ3_S: return multiply<AmxCodes<Iq3SBlock>>;
        case IQ3_XXS: return multiply<AmxCodes<Iq3XxsBlock>>;
        case IQ2_S: return multiply<AmxCodes<Iq2SBlock>>;
        case IQ2_XS: return multiply<AmxCodes<Iq2XsBlock>>;
        case IQ2_XXS: return multiply<AmxCodes<Iq2XxsBlock>>;
        default: __builtin_trap();  // Q8_0 has no tiles of AMX
    }
}

}  // namespace

void multiply_block_group(AmxTiles& registers, int format, const TileGroup& group, const PackedTiles& x,
                          const uint32_t* panel, int64_t K, float* sums) {
    product_of(format)(registers, group, x, panel, K / block_layout(format).numbers, sums);
}

#endif

}  // namespace SMOE_ISA
}  // namespace smoe
