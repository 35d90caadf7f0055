// Multiplies tiles by panels and stores the sums. Included by kernel files only.
#pragma once

#include "gemm/amx_tiles.h"
#include "gemm/packed_row_layout.h"
#include "gemm/packing/unpacked_panels.h"
#include "gemm/row_tiles.h"
#include "simd/matrix_products.h"
#include "simd/prefetch.h"
#include "simd/vec.h"

namespace smoe {
namespace SMOE_ISA {

// What one product needs to know of the others of its task: the tiles that are multiplied by the same panel, what to
// prefetch of a later panel, and which of the matrices that a tile is multiplied by in turns this is.
struct PanelUse {
    int64_t tiles;
    PrefetchShare share;
    int matrix;
};

// The share is one of the `words` words of the matrix's panel that is multiplied next.
inline PanelUse use_of(const NextPanel& next, const Matrix& matrix, int64_t words, int index = 0) {
    if (!next.parts) return {next.tiles, {}, index};
    const int64_t first = words * next.part / next.parts;
    return {next.tiles, {matrix.panel(next.panel) + first, words * next.end_part / next.parts - first}, index};
}

// Per-thread state for consecutive products: keeps the configuration that they share.
class Microkernel {
  public:
    // Multiply each tile of the group by the panel. Return the sums, [tiles][MAX_TILE_ROWS][PANEL] in float32, which
    // last until the next call for the same use.matrix; a group has at most MAX_GROUP_TILES, a tile max_tile_rows()
    // rows. Formats that share panels prefetch use.share meanwhile.
    float* multiply(int format, const TileGroup& group, const PackedTiles& x, const uint32_t* panel, int64_t K,
                    const PanelUse& use);

  private:
    void multiply_one(int format, int rows, const uint32_t* tile, const uint32_t* panel, int64_t K, float* out,
                      const PrefetchShare& share);

    static constexpr int MATRICES = 2;  // a mixture multiplies each tile by a panel of w1, then by one of w3

    alignas(64) float sums_[MATRICES][MAX_GROUP_TILES * TILE_SUMS];
    UnpackedPanels unpacked_;
#if defined(__AMX_TILE__)
    AmxTiles registers_;
#elif SMOE_MATRIX_PRODUCTS
    UnfusedBf16 rounding_;
#endif
};

// Store the first `columns` sums of one row and panel to y.
template <class T>
inline void store_row(T* y, const float* sums, int64_t columns) {
    if (columns == PANEL) {
        for (int n = 0; n < PANEL; n += LANES) store(y + n, load(sums + n));
    } else {
        for (int64_t n = 0; n < columns; ++n) store_one(y + n, sums[n]);
    }
}

}  // namespace SMOE_ISA
}  // namespace smoe
