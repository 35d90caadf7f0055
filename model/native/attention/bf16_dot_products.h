// Dot products of bfloat16 pairs, accumulated in float32, for up to MAX_ROWS attention rows at once. Included by kernel
// files only.
//
// A word holds two numbers of neighbouring k. One accumulator per output, k ascending, for any number of rows.
#pragma once

#if defined(__AVX512BF16__)

#include "attention/attention_f32.h"
#include "gemm/amx_tiles.h"

namespace smoe {
namespace SMOE_ISA {

// Row-major matrix; rows are `stride` elements apart.
template <class T>
struct Matrix {
    T* first;
    int64_t stride;
};

#if defined(__AMX_TILE__)

class Bf16DotProducts {
  public:
    static constexpr int64_t MAX_ROWS = 16;
    static constexpr int64_t DEPTH = LINE;  // the depth is a multiple of this

    // sums [rows, TILE_WIDTH] = scale * pairs [rows, depth] times panel [depth, TILE_WIDTH].
    void multiply(int64_t rows, Matrix<const uint32_t> pairs, Matrix<const uint32_t> panel, int64_t depth, float scale,
                  Matrix<float> sums) {
        add_to<true>(rows, pairs, panel, depth, sums);
        for (int64_t row = 0; row < rows; ++row)
            for (int n = 0; n < TILE_WIDTH; n += LANES) {
                float* sum = sums.first + row * sums.stride + n;
                store(sum, load(sum) * scale);
            }
    }

    // sums += pairs times panel.
    void add(int64_t rows, Matrix<const uint32_t> pairs, Matrix<const uint32_t> panel, int64_t depth,
             Matrix<float> sums) {
        add_to<false>(rows, pairs, panel, depth, sums);
    }

  private:
    template <bool FROM_ZERO>
    void add_to(int64_t rows, Matrix<const uint32_t> pairs, Matrix<const uint32_t> panel, int64_t depth,
                Matrix<float> sums) {
        registers_.shape_wide(static_cast<int>(rows));
        compiler_barrier();
        begin<FROM_ZERO>(sums);
        for (; depth; depth -= LINE) {
            const int64_t panel_bytes = panel.stride * 4;
            _tile_loadd(4, pairs.first, pairs.stride * 4);
            _tile_loadd(5, panel.first, panel_bytes);
            _tile_loadd(6, panel.first + 16, panel_bytes);
            _tile_loadd(7, panel.first + 32, panel_bytes);
            _tile_dpbf16ps(0, 4, 5);
            _tile_dpbf16ps(1, 4, 6);
            _tile_dpbf16ps(2, 4, 7);
            _tile_loadd(5, panel.first + 48, panel_bytes);
            _tile_dpbf16ps(3, 4, 5);
            pairs.first += LINE;
            panel.first += LINE * panel.stride;
        }
        _tile_stored(0, sums.first, sums.stride * 4);
        _tile_stored(1, sums.first + 16, sums.stride * 4);
        _tile_stored(2, sums.first + 32, sums.stride * 4);
        _tile_stored(3, sums.first + 48, sums.stride * 4);
        compiler_barrier();
    }

    template <bool FROM_ZERO>
    static void begin(Matrix<float> sums) {
        if constexpr (FROM_ZERO) {
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
        } else {
            _tile_loadd(0, sums.first, sums.stride * 4);
            _tile_loadd(1, sums.first + 16, sums.stride * 4);
            _tile_loadd(2, sums.first + 32, sums.stride * 4);
            _tile_loadd(3, sums.first + 48, sums.stride * 4);
        }
    }

    AmxTiles registers_;
};

#else

class Bf16DotProducts {
  public:
    static constexpr int64_t MAX_ROWS = TILE_ROWS;
    static constexpr int64_t DEPTH = 1;

    // sums [rows, TILE_WIDTH] = scale * pairs [rows, depth] times panel [depth, TILE_WIDTH].
    void multiply(int64_t rows, Matrix<const uint32_t> pairs, Matrix<const uint32_t> panel, int64_t depth, float scale,
                  Matrix<float> sums) const {
        with_rows(rows, [&](auto tile) { multiply_rows<true, tile.value>(pairs, panel, depth, scale, sums); });
    }
    void add(int64_t rows, Matrix<const uint32_t> pairs, Matrix<const uint32_t> panel, int64_t depth,
             Matrix<float> sums) const {
        with_rows(rows, [&](auto tile) { multiply_rows<false, tile.value>(pairs, panel, depth, 1, sums); });
    }

  private:
    template <bool FROM_ZERO, int ROWS>
    static void multiply_rows(Matrix<const uint32_t> pairs, Matrix<const uint32_t> panel, int64_t depth, float scale,
                              Matrix<float> into) {
        Vec sums[ROWS][TILE_VECS] = {};
        if constexpr (!FROM_ZERO)
            for (int row = 0; row < ROWS; ++row)
                for (int n = 0; n < TILE_VECS; ++n) sums[row][n] = load(into.first + row * into.stride + n * LANES);
        for (int64_t k = 0; k < depth; ++k) {
            __m512bh column[TILE_VECS];
#pragma GCC unroll 4
            for (int n = 0; n < TILE_VECS; ++n)
                column[n] = (__m512bh)load_words(panel.first + k * panel.stride + n * LANES);
#pragma GCC unroll 6
            for (int row = 0; row < ROWS; ++row) {
                const auto pair = (__m512bh)broadcast_word(pairs.first[row * pairs.stride + k]);
#pragma GCC unroll 4
                for (int n = 0; n < TILE_VECS; ++n)
                    sums[row][n] = (Vec)_mm512_dpbf16_ps((__m512)sums[row][n], pair, column[n]);
            }
        }
        for (int row = 0; row < ROWS; ++row)
            for (int n = 0; n < TILE_VECS; ++n)
                store(into.first + row * into.stride + n * LANES, FROM_ZERO ? sums[row][n] * scale : sums[row][n]);
    }
};

#endif

}  // namespace SMOE_ISA
}  // namespace smoe

#endif
