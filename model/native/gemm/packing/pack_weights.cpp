#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstring>

#include "gemm/gemm.h"

namespace smoe {
namespace {

constexpr int CHUNK = 16;  // units read from one row at a time: a cache line

int64_t row_bytes_of(int dtype, int64_t K) { return K * (dtype == FLOAT32 ? 4 : 2); }

// Transpose: out[k][n] = unit k of row n, for `width` columns; zeros for rows >= `rows` and past a row's end. Whole
// cache lines of each row go through `chunk`, because rows a power of two apart would evict each other from the cache.
template <class RowAt>
void interleave(RowAt row_at, int rows, int width, int64_t row_bytes, int64_t depth, uint32_t* out) {
    alignas(64) uint32_t chunk[PANEL][CHUNK] = {};
    for (int64_t first = 0; first < depth; first += CHUNK) {
        const int64_t bytes = std::min<int64_t>(CHUNK * 4, row_bytes - first * 4);
        const int64_t count = std::min<int64_t>(CHUNK, depth - first);
        for (int n = 0; n < rows; ++n) {
            chunk[n][count - 1] = 0;
            std::memcpy(chunk[n], row_at(n) + first * 4, bytes);
        }
        for (int64_t k = 0; k < count; ++k)
            for (int n = 0; n < width; ++n) out[(first + k) * width + n] = chunk[n][k];
    }
}

void pack_panel(int dtype, const void* weight, int64_t first_output, int64_t O, int64_t K, uint32_t* panel) {
    const int64_t row_bytes = row_bytes_of(dtype, K);
    const auto outputs = static_cast<int>(std::min<int64_t>(PANEL, O - first_output));
    const auto* rows = static_cast<const std::byte*>(weight) + first_output * row_bytes;
    interleave([=](int n) { return rows + n * row_bytes; }, outputs, PANEL, row_bytes, depth_of(dtype, K), panel);
}

bool pack_panel(int isa, int dtype, int format, const void* weight, int64_t first_output, int64_t O, int64_t K,
                uint32_t* panel) {
    if (format == CODED_BFLOAT16) return encode_panel(static_cast<const uint16_t*>(weight), first_output, O, K, panel);
    if (format == dtype)
        pack_panel(dtype, weight, first_output, O, K, panel);
    else
        SMOE_CALL(isa, quantize_panel(dtype, format, weight, first_output, O, K, panel));
    return true;
}

}  // namespace

bool pack(Pool& pool, int isa, int dtype, int format, const void* weight, uint32_t* packed, int64_t stride, int64_t O,
          int64_t K) {
    std::atomic<bool> fits{true};
    pool.parallel_for(ceil_div(O, PANEL), [=, &fits](int64_t panel) {
        if (!pack_panel(isa, dtype, format, weight, panel * PANEL, O, K, packed + panel * stride)) fits = false;
    });
    return fits;
}

void pack_tile(int dtype, const void* x, const int32_t* row_ids, int rows, int64_t K, uint32_t* tile) {
    const int64_t row_bytes = row_bytes_of(dtype, K);
    const auto* first = static_cast<const std::byte*>(x);
    interleave([=](int m) { return first + row_ids[m] * row_bytes; }, rows, rows, row_bytes, depth_of(dtype, K), tile);
}

}  // namespace smoe
