// Prints digests of what every instruction set of this CPU computes: "isa name rows digest", one line each. Names:
// FORMAT-DTYPE are products of a weight format, expert-FORMAT-DTYPE those of an expert, attention-KV_DTYPE-DTYPE is
// attention of the last rows of a sequence. Inputs are the same on every machine. Exit code 1 if a row's result depends
// on other rows.
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "smoe_native.h"

namespace {

constexpr int NUM_ISAS = 9, FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2, INT4 = 3, CODED_BFLOAT16 = 64;
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

    Packed(int format, int64_t outputs) : panels((outputs + 31) / 32 * smoe_panel_size(format, K) + 64) {
        auto* start = panels.data() + (64 - reinterpret_cast<uintptr_t>(panels.data()) % 64) % 64;
        matrix = {start, outputs, smoe_panel_size(format, K), format, nullptr};
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

// Rows of x in dtype.
struct Rows {
    std::vector<float> wide;
    std::vector<uint16_t> narrow;
    int dtype;
    int64_t length;

    Rows(int64_t rows, int64_t length, int dtype, uint64_t seed)
        : wide(numbers(rows * length, seed)), narrow(narrowed(wide)), dtype(dtype), length(length) {}
    const void* row(int64_t i) const {
        return dtype == BFLOAT16 ? static_cast<const void*>(&narrow[i * length]) : &wide[i * length];
    }
};

// Print the digest of compute(first row, number of rows), which returns [rows, outputs]. Returns false if the last row
// alone has other bits than among the others.
template <class Compute>
bool print(int isa, const std::string& name, int64_t rows, Compute compute) {
    const std::vector<float> all = compute(0, rows), last = compute(rows - 1, 1);
    std::printf("%d %s %" PRId64 " %016" PRIx64 "\n", isa, name.c_str(), rows, digest(all));
    return !std::memcmp(last.data(), &all[all.size() - last.size()], last.size() * sizeof(float));
}

std::string name_of(const char* kind, int64_t format, int dtype) {
    return kind + std::to_string(format) + "-" + std::to_string(dtype);
}

bool print_products(smoe_pool* pool, int isa, int dtype, const smoe_matrix& matrix) {
    bool is_independent = true;
    for (int64_t rows : ROWS) {
        const Rows x(rows, K, dtype, 7 + rows);
        is_independent &= print(isa, name_of("", matrix.format, dtype), rows, [&](int64_t first, int64_t count) {
            return multiply(pool, isa, dtype, x.row(first), matrix, count);
        });
    }
    return is_independent;
}

// An expert whose three matrices are [K, K].
bool print_expert(smoe_pool* pool, int isa, int dtype, int format) {
    std::vector<Packed> packed;
    for (int i = 0; i < 3; ++i) {
        const Rows weight(K, K, dtype, 11 + i);
        packed.emplace_back(format, K);
        if (smoe_pack(pool, isa, dtype, format, weight.row(0), packed[i].to(), packed[i].matrix.stride, K, K))
            std::abort();
    }
    const smoe_expert expert = {packed[0].matrix, packed[1].matrix, packed[2].matrix};
    bool is_independent = true;
    for (int64_t rows : {1, 5, 29, 70}) {
        const Rows x(rows, K, dtype, 17 + rows);
        is_independent &= print(isa, name_of("expert-", format, dtype), rows, [&](int64_t first, int64_t count) {
            std::vector<float> y(count * K);  // the first half is used by bfloat16
            if (smoe_ffn(pool, isa, dtype, x.row(first), &expert, y.data(), count, K, K, nullptr, 0, nullptr, 0))
                std::abort();
            y.resize(dtype == BFLOAT16 ? count * K / 2 : count * K);
            return y;
        });
    }
    return is_independent;
}

// A sequence of 83 positions, the last rows of which have queries.
bool print_attention(smoe_pool* pool, int isa, int dtype, int kv_dtype) {
    constexpr int64_t LENGTH = 83, BLOCK = 16, BLOCKS = 6, H = 4, G = 2, D = 32, ROTATED = LENGTH * D / 2;
    const Rows qkv(LENGTH, (H + 2 * G) * D, dtype, 23);
    const std::vector<float> cos = numbers(ROTATED, 29), sin = numbers(ROTATED, 31);
    std::vector<int64_t> slots(LENGTH);
    for (int64_t i = 0; i < LENGTH; ++i) slots[i] = i;
    std::vector<float> q(LENGTH * H * D), k_cache(BLOCKS * BLOCK * G * (D + 4)), v_cache(k_cache.size());
    if (smoe_rope_and_store_kv(pool, isa, dtype, dtype, kv_dtype, qkv.row(0), q.data(), k_cache.data(), v_cache.data(),
                               cos.data(), sin.data(), slots.data(), LENGTH, H, G, D, BLOCK))
        std::abort();
    const int32_t blocks[BLOCKS] = {0, 1, 2, 3, 4, 5}, context = LENGTH;
    bool is_independent = true;
    for (int64_t rows : ROWS)
        is_independent &= print(isa, name_of("attention-", kv_dtype, dtype), rows, [&](int64_t first, int64_t count) {
            std::vector<float> y(count * H * D);
            const int64_t at = (LENGTH - rows + first) * H * D;
            const void* queries = dtype == BFLOAT16 ? reinterpret_cast<uint16_t*>(q.data()) + at : (void*)&q[at];
            const int32_t starts[] = {0, static_cast<int32_t>(count)};
            if (smoe_attention(pool, isa, dtype, FLOAT32, kv_dtype, queries, k_cache.data(), v_cache.data(), y.data(),
                               starts, &context, blocks, 1, BLOCKS, BLOCK, H, G, D, 0))
                std::abort();
            return y;
        });
    return is_independent;
}

}  // namespace

int main() {
    smoe_pool* pool = smoe_pool_create(1);
    const BlockFormat files[] = {{4, 18, 32, {0}},       {8, 34, 32, {0}},      {9, 144, 256, {0, 2}},
                                 {10, 176, 256, {0, 2}}, {11, 210, 256, {208}}, {17, 18, 32, {0}},
                                 {31, 74, 256, {0}}};
    bool is_independent = true;
    for (int isa = 0; isa < NUM_ISAS; ++isa) {
        if (!smoe_isa_available(isa)) continue;
        for (int dtype : {FLOAT32, BFLOAT16}) {
            const Rows weight(OUTPUTS, K, dtype, 1);
            for (int format : {dtype, INT8, INT4, CODED_BFLOAT16}) {
                if (format == CODED_BFLOAT16 && dtype != BFLOAT16) continue;
                Packed packed(format, OUTPUTS);
                if (smoe_pack(pool, isa, dtype, format, weight.row(0), packed.to(), packed.matrix.stride, OUTPUTS, K))
                    std::abort();
                is_independent &= print_products(pool, isa, dtype, packed.matrix);
                is_independent &= print_expert(pool, isa, dtype, format);
            }
            for (const BlockFormat& file : files) {
                Packed packed(file.format, OUTPUTS);
                smoe_pack_blocks(pool, file.format, blocks(file, 3).data(), packed.to(), packed.matrix.stride, OUTPUTS,
                                 K);
                is_independent &= print_products(pool, isa, dtype, packed.matrix);
            }
            for (int kv_dtype : {dtype, INT8}) is_independent &= print_attention(pool, isa, dtype, kv_dtype);
        }
    }
    smoe_pool_destroy(pool);
    return is_independent ? 0 : 1;
}
