#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>

#include "gemm/coded_weights.h"
#include "gemm/gemm.h"

namespace smoe {
namespace {

constexpr int TABLE_VALUES = 8;  // upper bits of exponents
constexpr int NO_CODE = 16;
constexpr int64_t MAX_WEIGHTS = 1 << 24;  // of a panel: a patch has 24 bits for the number of its weight
constexpr uint8_t SIGN = 0x80;

constexpr int CHUNK = 16;  // units of a row that are read at once: a cache line

// PANEL rows of a weight; those past the last output are zeros.
class Rows {
  public:
    using Chunk = uint32_t[PANEL][CHUNK];

    Rows(const uint16_t* weight, int64_t first, int64_t O, int64_t K)
        : rows_(weight + first * K), count_(std::min<int64_t>(PANEL, O - first)), K_(K) {}

    // Copy units first .. first + CHUNK - 1 of each row, zeros past its end. Rows a power of two apart would evict each
    // other from the cache if they were read unit by unit.
    void copy(int64_t first, Chunk& chunk) const {
        const int64_t numbers = std::clamp<int64_t>(K_ - 2 * first, 0, 2 * CHUNK);
        std::memset(chunk, 0, sizeof chunk);
        for (int64_t row = 0; row < count_; ++row) std::memcpy(chunk[row], rows_ + row * K_ + 2 * first, 2 * numbers);
    }

    // Count the weights, zeros of the padding included, by their high bytes without the sign. Neighbours count in
    // tables of their own: two increments of one number would wait for each other.
    std::array<int64_t, SIGN> count_high_bytes() const {
        constexpr int64_t TABLES = 4;
        std::array<std::array<int64_t, SIGN>, TABLES> counts{};
        counts[0][0] = 4 * PANEL * coded_pairs(K_) - count_ * K_;
        for (int64_t i = 0; i < count_ * K_; ++i) ++counts[i % TABLES][rows_[i] >> 8 & (SIGN - 1)];
        for (int64_t table = 1; table < TABLES; ++table)
            for (int value = 0; value < SIGN; ++value) counts[0][value] += counts[table][value];
        return counts[0];
    }

  private:
    const uint16_t* rows_;
    int64_t count_, K_;
};

// The table of a panel, and the code of each high byte, or NO_CODE.
struct Codes {
    std::array<uint8_t, 2 * TABLE_VALUES> table{};
    std::array<uint8_t, 256> code_of;

    // Take the most frequent values; of equally frequent ones the smaller.
    explicit Codes(const std::array<int64_t, SIGN>& counts) {
        std::array<uint8_t, SIGN> values;
        std::iota(values.begin(), values.end(), uint8_t{0});
        std::stable_sort(values.begin(), values.end(), [&](int a, int b) { return counts[a] > counts[b]; });
        std::sort(values.begin(), values.begin() + TABLE_VALUES);
        code_of.fill(NO_CODE);
        for (int code = 0; code < TABLE_VALUES; ++code)
            for (const int negative : {0, 1}) {
                const auto high = static_cast<uint8_t>(values[code] | (negative ? SIGN : 0));
                table[code + negative * TABLE_VALUES] = high;
                code_of[high] = static_cast<uint8_t>(code + negative * TABLE_VALUES);
            }
    }
};

// Place of an output's two bytes among the 64 of a unit.
constexpr int place_of(int output) { return output % 16 / 4 * 16 + output / 16 * 8 + output % 4 * 2; }

// Adds patches to a panel while there is room.
struct Patches {
    uint32_t* words;
    int64_t room, count = 0;

    void add(int64_t weight, uint8_t high) {
        if (count < room) words[count] = static_cast<uint32_t>(weight) << 8 | high;
        ++count;
    }
};

// Add the patches of a unit whose codes are given, and clear those that are NO_CODE.
void add_patches(const Rows::Chunk& chunk, int k, int64_t unit, uint8_t* unit_codes, Patches& patches) {
    for (int output = 0; output < PANEL; ++output)
        for (int half = 0; half < 2; ++half)
            if (uint8_t& code = unit_codes[place_of(output) + half]; code == NO_CODE) {
                code = 0;
                patches.add((unit * PANEL + output) * 2 + half,
                            static_cast<uint8_t>(chunk[output][k] >> (16 * half + 8)));
            }
}

// Encode unit `unit`, which is unit k of the chunk.
void encode_unit(const Rows::Chunk& chunk, int k, const Codes& codes, int64_t unit, uint8_t* pair, Patches& patches) {
    uint8_t low[64], unit_codes[64], all_codes = 0;  // local: stores to the panel might change what is read
#pragma GCC unroll 32
    for (int output = 0; output < PANEL; ++output) {
        const uint32_t word = chunk[output][k];
        uint8_t *to = low + place_of(output), *code = unit_codes + place_of(output);
        to[0] = static_cast<uint8_t>(word), code[0] = codes.code_of[word >> 8 & 0xff];
        to[1] = static_cast<uint8_t>(word >> 16), code[1] = codes.code_of[word >> 24];
        all_codes |= code[0] | code[1];
    }
    if (all_codes & NO_CODE) add_patches(chunk, k, unit, unit_codes, patches);
    std::memcpy(pair + 64 * (1 + unit % 2), low, sizeof low);
    for (int place = 0; place < 64; ++place) pair[place] |= static_cast<uint8_t>(unit_codes[place] << unit % 2 * 4);
}

}  // namespace

bool encode_panel(const uint16_t* weight, int64_t first, int64_t O, int64_t K, uint32_t* panel) {
    if (4 * PANEL * coded_pairs(K) > MAX_WEIGHTS) return false;
    const Rows rows(weight, first, O, K);
    const Codes codes(rows.count_high_bytes());
    std::memset(panel, 0, coded_panel_words(K) * 4);
    std::memcpy(panel, codes.table.data(), codes.table.size());
    Patches patches{panel + FIRST_PATCH_AT, patch_words(K)};
    auto* pairs = reinterpret_cast<uint8_t*>(panel + first_pair_at(K));
    Rows::Chunk chunk;
    for (int64_t unit = 0; unit < 2 * coded_pairs(K); ++unit) {
        if (unit % CHUNK == 0) rows.copy(unit, chunk);
        encode_unit(chunk, unit % CHUNK, codes, unit, pairs + unit / 2 * PAIR_WORDS * 4, patches);
    }
    panel[PATCH_COUNT_AT] = static_cast<uint32_t>(std::min(patches.count, patches.room));
    return patches.count <= patches.room;
}

}  // namespace smoe
