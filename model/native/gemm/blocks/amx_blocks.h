// Products with block formats on AMX. Included by kernel files only.
#pragma once

#if defined(__AMX_TILE__)

#include "gemm/amx_tiles.h"
#include "gemm/packed_row_layout.h"

namespace smoe {
namespace SMOE_ISA {

// sums [tiles][MAX_TILE_ROWS][PANEL] = each tile of the group, in the AMX layout of a block format, times the panel.
void multiply_block_group(AmxTiles& registers, int format, const TileGroup& group, const PackedTiles& x,
                          const uint32_t* panel, int64_t K, float* sums);

}  // namespace SMOE_ISA
}  // namespace smoe

#endif
