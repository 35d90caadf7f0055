// Prints a digest of the products of every weight format with every instruction set of this CPU: "isa format rows
// digest", one line each. Inputs are the same on every machine. Exit code 1 if a row's result depends on other rows.
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "smoe_native.h"

namespace {

constexpr int NUM_ISAS = 8, FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2, INT4 = 3;
constexpr int64_t OUTPUTS = 75, K = 512;  // the last panel is not full
constexpr int64_t ROWS[] = {1, 2, 3, 5, 8, 13, 29};

struct Random {
    uint64_t state;

    uint32_t next() {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return static_cast<uint32_t>(state >> 33);
    }
    float number() { return static_cast<float>(next()) * 0x1p-30f - 1.0f; }  // -1 .. 1, all bits in use
};

std::vector<float> numbers(int64_t count, uint64_t seed) {
    Random random{seed};
    std::vector<float> values(count);
    for (float& value : values) value = random.number();
    return values;
}

std::vector<uint16_t> narrowed(const std::vector<float>& values) {
    std::vector<uint16_t> narrow(values.size());
    for (size_t i = 0; i < values.size(); ++i) {
        uint32_t word;
        std::memcpy(&word, &values[i], sizeof word);
        narrow[i] = static_cast<uint16_t>(word >> 16);
    }
    return narrow;
}

// A block format of GGUF files: bytes and numbers per block, and where its float16 scales are.
struct BlockFormat {
    int format, bytes, numbers;
    std::vector<int> scales;
};

std::vector<uint8_t> blocks(const BlockFormat& format, uint64_t seed) {
    Random random{seed};
    std::vector<uint8_t> bytes(OUTPUTS * K / format.numbers * format.bytes);
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random.next());
    for (size_t block = 0; block < bytes.size(); block += format.bytes)
        for (int at : format.scales) bytes[block + at + 1] = 0x20 | (bytes[block + at + 1] & 3);  // 0.008 .. 0.016
    return bytes;
}

struct Packed {
    std::vector<uint8_t> panels;
    smoe_matrix matrix;

    explicit Packed(int format) : panels((OUTPUTS + 31) / 32 * smoe_panel_size(format, K) + 64) {
        auto* start = panels.data() + (64 - reinterpret_cast<uintptr_t>(panels.data()) % 64) % 64;
        matrix = {start, OUTPUTS, smoe_panel_size(format, K), format, nullptr};
    }
    void* to() { return const_cast<void*>(matrix.panels); }
};

std::vector<float> multiply(smoe_pool* pool, int isa, int dtype, const void* x, const smoe_matrix& matrix,
                            int64_t rows) {
    std::vector<float> y(rows * OUTPUTS);
    if (smoe_linear(pool, isa, dtype, x, &matrix, 1, y.data(), rows, K, 1, nullptr, 0, 0)) std::abort();
    return y;
}

uint64_t digest(const std::vector<float>& values) {
    uint64_t hash = 14695981039346656037u;  // FNV-1a
    for (const float& value : values) {
        uint32_t word;
        std::memcpy(&word, &value, sizeof word);
        for (int shift = 0; shift < 32; shift += 8) hash = (hash ^ (word >> shift & 0xff)) * 1099511628211u;
    }
    return hash;
}

// Print the digests of a matrix's products. Returns false if a row alone has other bits than among others.
bool print(smoe_pool* pool, int isa, int dtype, const smoe_matrix& matrix) {
    bool is_independent = true;
    for (int64_t rows : ROWS) {
        const std::vector<float> x = numbers(rows * K, 7 + rows);
        const std::vector<uint16_t> narrow = narrowed(x);
        const auto row = [&](int64_t i) -> const void* {
            return dtype == BFLOAT16 ? static_cast<const void*>(&narrow[i * K]) : &x[i * K];
        };
        const std::vector<float> y = multiply(pool, isa, dtype, row(0), matrix, rows);
        const std::vector<float> last = multiply(pool, isa, dtype, row(rows - 1), matrix, 1);
        is_independent &= !std::memcmp(last.data(), &y[(rows - 1) * OUTPUTS], OUTPUTS * sizeof(float));
        std::printf("%d %d-%d %" PRId64 " %016" PRIx64 "\n", isa, static_cast<int>(matrix.format), dtype, rows,
                    digest(y));
    }
    return is_independent;
}

}  // namespace

int main() {
    smoe_pool* pool = smoe_pool_create(1);
    const std::vector<float> weight = numbers(OUTPUTS * K, 1);
    const std::vector<uint16_t> narrow = narrowed(weight);
    const BlockFormat files[] = {{4, 18, 32, {0}}, {8, 34, 32, {0}}, {9, 144, 256, {0, 2}}, {11, 210, 256, {208}}};
    bool is_independent = true;
    for (int isa = 0; isa < NUM_ISAS; ++isa) {
        if (!smoe_isa_available(isa)) continue;
        for (int dtype : {FLOAT32, BFLOAT16}) {
            const void* source = dtype == BFLOAT16 ? static_cast<const void*>(narrow.data()) : weight.data();
            for (int format : {dtype, INT8, INT4}) {
                Packed packed(format);
                smoe_pack(pool, isa, dtype, format, source, packed.to(), packed.matrix.stride, OUTPUTS, K);
                is_independent &= print(pool, isa, dtype, packed.matrix);
            }
            for (const BlockFormat& file : files) {
                Packed packed(file.format);
                smoe_pack_blocks(pool, file.format, blocks(file, 3).data(), packed.to(), packed.matrix.stride, OUTPUTS,
                                 K);
                is_independent &= print(pool, isa, dtype, packed.matrix);
            }
        }
    }
    smoe_pool_destroy(pool);
    return is_independent ? 0 : 1;
}
