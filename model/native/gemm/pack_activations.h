// Rows of x, packed by tiles in any format.
#pragma once

#include <cstdint>
#include <vector>

#include "gemm/row_tiles.h"

namespace smoe {

// Rows row_ids[first_row + ..] of x [.., K] in dtype, tile by tile, to `packed`; gemm/packed_row_layout.h has the room
// it needs.
SMOE_PER_ISA(void pack_rows(Pool& pool, int dtype, int format, const void* x, const std::vector<int32_t>& row_ids,
                            const std::vector<Tile>& tiles, int64_t K, uint32_t* packed))

}  // namespace smoe
