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

// 32 rows of a weight; those past the last output are zeros.
class Rows {
  public:
    Rows(const uint16_t* weight, int64_t first, int64_t O, int64_t K)
        : rows_(weight + first * K), count_(std::min<int64_t>(PANEL, O - first)), K_(K) {}

    uint16_t operator()(int64_t output, int64_t k) const {
        return output < count_ && k < K_ ? rows_[output * K_ + k] : uint16_t{0};
    }

    // Count the weights, zeros of the padding included, by their high bytes without the sign.
    std::array<int64_t, SIGN> count_high_bytes() const {
        std::array<int64_t, SIGN> counts{};
        counts[0] = 4 * PANEL * coded_pairs(K_) - count_ * K_;
        for (int64_t i = 0; i < count_ * K_; ++i) ++counts[rows_[i] >> 8 & (SIGN - 1)];
        return counts;
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

void encode_unit(const Rows& rows, const Codes& codes, int64_t unit, uint8_t* pair, Patches& patches) {
    const bool is_second = unit % 2;
    uint8_t* low = pair + 64 * (1 + is_second);
    for (int output = 0; output < PANEL; ++output)
        for (int half = 0; half < 2; ++half) {
            const uint16_t weight = rows(output, 2 * unit + half);
            const auto high = static_cast<uint8_t>(weight >> 8);
            const int place = place_of(output) + half, code = codes.code_of[high];
            low[place] = static_cast<uint8_t>(weight);
            if (code == NO_CODE)
                patches.add((unit * PANEL + output) * 2 + half, high);
            else
                pair[place] |= static_cast<uint8_t>(code << (is_second ? 4 : 0));
        }
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
    for (int64_t unit = 0; unit < 2 * coded_pairs(K); ++unit)
        encode_unit(rows, codes, unit, pairs + unit / 2 * PAIR_WORDS * 4, patches);
    panel[PATCH_COUNT_AT] = static_cast<uint32_t>(std::min(patches.count, patches.room));
    return patches.count <= patches.room;
}

}  // namespace smoe
