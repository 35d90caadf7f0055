// What multiplies tiles with panels. Included by kernel files only.
#pragma once

#include "row_layout.h"
#include "tile_registers.h"

namespace smoe {
namespace SMOE_ISA {

// One thread's, for some products in a row: it keeps what they have in common.
class Multiplier {
  public:
    // out[rows][PANEL] = tile times panel, in float32; rows <= max_tile_rows(format).
    void multiply(int format, int rows, const uint32_t* tile, const uint32_t* panel, int64_t K, float* out);

  private:
#if defined(__AMX_TILE__)
    TileRegisters registers_;
#endif
};

}  // namespace SMOE_ISA
}  // namespace smoe
