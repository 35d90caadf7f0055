// Rows of x, packed by tiles in any format.
#pragma once

#include <cstdint>
#include <vector>

#include "rows.h"

namespace smoe {

// Words that pack_rows needs for each row: it packs, and before that may quantise to as many words again.
inline int64_t packing_words(int format, int64_t K) { return row_words(format, K) * (is_quantized(format) ? 2 : 1); }

// Rows row_ids[first_row + ..] of x [.., K] in dtype, tile by tile, to `packed`.
SMOE_PER_ISA(void pack_rows(Pool& pool, int dtype, int format, const void* x, const std::vector<int32_t>& row_ids,
                            const std::vector<Tile>& tiles, int64_t K, uint32_t* packed))

}  // namespace smoe
