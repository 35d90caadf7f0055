// Packs rows of x by tiles, in any format.
#pragma once

#include <cstdint>
#include <vector>

#include "gemm/row_tiles.h"

namespace smoe {

// Order of the numbers of a row of x for each expert's matrix (gemm/block_formats.h), or null: as they are.
using Orders = std::vector<const int32_t*>;

// Pack rows row_ids[first_row + ..] of x [.., K] of dtype into `packed`, tile by tile, rounded to the format;
// gemm/packed_row_layout.h gives the size. Runs the tasks beside too.
SMOE_PER_ISA(void pack_rows(Pool& pool, int dtype, int format, const void* x, const std::vector<int32_t>& row_ids,
                            const std::vector<Tile>& tiles, int64_t K, const Orders& orders, uint32_t* packed,
                            const SideTasks& beside))

}  // namespace smoe
