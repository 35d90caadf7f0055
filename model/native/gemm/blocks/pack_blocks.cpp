#include <algorithm>
#include <cstring>

#include "gemm/block_formats.h"
#include "gemm/gemm.h"

namespace smoe {
namespace {

uint16_t half_at(const uint8_t* p) { return static_cast<uint16_t>(p[0] | p[1] << 8); }

// Write `count` words of one output to a panel: word i goes to to[i][PANEL].
void scatter(const uint8_t* from, int count, uint32_t flip, uint32_t* to) {
    for (int i = 0; i < count; ++i) {
        uint32_t word;
        std::memcpy(&word, from + 4 * i, sizeof word);
        to[i * PANEL] = word ^ flip;
    }
}

// Reorder the fifth bits of 32 numbers: bit k = 4u + j becomes bit 8j + u.
uint32_t plane_of(const uint8_t* bits) {
    uint32_t plane = 0;
    for (int u = 0; u < 8; ++u) {
        const uint32_t four = bits[u / 2] >> u % 2 * 4 & 15u;
        plane |= ((four | four << 7 | four << 14 | four << 21) & 0x01010101u) << u;
    }
    return plane;
}

// One output's block of Q4_0 .. Q8_0 to column n: d, m, fifth bits, numbers, as far as the format has them.
void pack_small(int format, const uint8_t* block, int n, uint32_t* panel) {
    const bool has_min = format == Q4_1 || format == Q5_1, has_plane = format == Q5_0 || format == Q5_1;
    auto* halves = reinterpret_cast<uint16_t*>(panel);
    halves[n] = half_at(block);
    if (has_min) halves[PANEL + n] = half_at(block + 2);
    block += has_min ? 4 : 2;
    panel += has_min ? PANEL : PANEL / 2;
    if (has_plane) {
        panel[n] = plane_of(block);
        block += 4;
        panel += PANEL;
    }
    if (format == Q8_0)
        scatter(block, 8, 0x80808080u, panel + n);
    else
        scatter(block, 4, 0, panel + n);
}

// One output's group to column n: d, `rest` bytes of z or m, `words` words of numbers.
void pack_group(int rest, int words, const uint8_t* group, int n, uint32_t* panel) {
    std::memcpy(panel + n, group, sizeof(float));
    std::memcpy(reinterpret_cast<uint8_t*>(panel + PANEL) + n * rest, group + sizeof(float), rest);
    scatter(group + sizeof(float) + rest, words, 0, panel + PANEL + PANEL * rest / 4 + n);
}

// Scale and minimum of group g among the 12 bytes of Q4_K and Q5_K: six bits each, the upper two of groups 4 .. 7 in
// the bytes of groups 0 .. 3.
uint8_t scale_of(const uint8_t* packed, int g) {
    return g < 4 ? packed[g] & 63 : (packed[g + 4] & 15) | packed[g - 4] >> 6 << 4;
}

uint8_t min_of(const uint8_t* packed, int g) {
    return g < 4 ? packed[g + 4] & 63 : packed[g + 4] >> 4 | packed[g] >> 6 << 4;
}

// One output's block of Q4_K or Q5_K to column n.
void pack_with_mins(int format, const uint8_t* block, int n, uint32_t* panel) {
    auto* halves = reinterpret_cast<uint16_t*>(panel);
    halves[n] = half_at(block);
    halves[PANEL + n] = half_at(block + 2);
    auto* scales = reinterpret_cast<uint8_t*>(panel + PANEL);
    auto* mins = reinterpret_cast<uint8_t*>(panel + 3 * PANEL);
    for (int g = 0; g < 8; ++g) {
        const int at = (g / 2 * PANEL + n) * 2 + g % 2;
        scales[at] = scale_of(block + 4, g);
        mins[at] = min_of(block + 4, g);
    }
    const int words = format == Q5_K ? 40 : 32;  // the plane precedes the 4-bit numbers, as in the file
    scatter(block + 16, words, 0, panel + 5 * PANEL + n);
}

// One output's block of Q6_K to column n.
void pack_q6_k(const uint8_t* block, int n, uint32_t* panel) {
    reinterpret_cast<uint16_t*>(panel)[n] = half_at(block + 208);
    auto* scales = reinterpret_cast<uint8_t*>(panel + PANEL / 2);
    for (int g = 0; g < 16; ++g) scales[(g / 2 * PANEL + n) * 2 + g % 2] = block[192 + g];
    scatter(block, 48, 0, panel + PANEL / 2 + 4 * PANEL + n);
}

// One output's block of Q2_K to column n: 16 bytes with a scale and a minimum each, 2-bit numbers, d, dmin.
void pack_q2_k(const uint8_t* block, int n, uint32_t* panel) {
    auto* halves = reinterpret_cast<uint16_t*>(panel);
    halves[n] = half_at(block + 80);
    halves[PANEL + n] = half_at(block + 82);
    auto* scales = reinterpret_cast<uint8_t*>(panel + PANEL);
    for (int g = 0; g < 16; ++g) scales[(g / 2 * PANEL + n) * 2 + g % 2] = block[g];
    scatter(block + 16, 16, 0, panel + 5 * PANEL + n);
}

// Scale of group g among the 12 bytes of Q3_K: four bits of each in the first 8 bytes, two bits in the last 4.
uint8_t q3_scale_of(const uint8_t* packed, int g) {
    const int low = g < 8 ? packed[g] & 15 : packed[g - 8] >> 4, high = packed[8 + g % 4] >> g / 4 * 2 & 3;
    return static_cast<uint8_t>((low | high << 4) - 32);
}

// One output's block of Q3_K to column n: third bits, 2-bit numbers, scales, d.
void pack_q3_k(const uint8_t* block, int n, uint32_t* panel) {
    reinterpret_cast<uint16_t*>(panel)[n] = half_at(block + 108);
    auto* scales = reinterpret_cast<uint8_t*>(panel + PANEL / 2);
    for (int g = 0; g < 16; ++g) scales[(g / 2 * PANEL + n) * 2 + g % 2] = q3_scale_of(block + 96, g);
    scatter(block, 24, 0, panel + PANEL / 2 + 4 * PANEL + n);
}

// One output's block of IQ4_XS to column n: d, two bits of each scale, four bits of each scale, indices.
void pack_iq4_xs(const uint8_t* block, int n, uint32_t* panel) {
    reinterpret_cast<uint16_t*>(panel)[n] = half_at(block);
    auto* scales = reinterpret_cast<uint8_t*>(panel + PANEL / 2);
    for (int g = 0; g < 8; ++g) {
        const int low = block[4 + g / 2] >> g % 2 * 4 & 15, high = half_at(block + 2) >> g * 2 & 3;
        scales[(g / 2 * PANEL + n) * 2 + g % 2] = static_cast<uint8_t>((low | high << 4) - 32);
    }
    scatter(block + 8, 32, 0, panel + PANEL / 2 + 2 * PANEL + n);
}

void scatter_bytes(const uint8_t* from, int count, uint8_t* to) {
    for (int i = 0; i < count; ++i) to[i * PANEL] = from[i];
}

// Plane of the signs of 32 numbers of which every eight are stored in seven bits, with bit k of `rest` in the place of
// the eighth sign of number k.
uint32_t plane_of_sevens(uint32_t sevens, uint32_t rest) {
    uint8_t bytes[4];
    for (int k = 0; k < 4; ++k) bytes[k] = sevens >> 7 * k & 127;
    return plane_of(bytes) | (rest & 1) << 25 | (rest & 2) << 26 | (rest & 4) << 27 | (rest & 8) << 28;
}

// One output's block of IQ3_S or IQ2_S to column n: d, codes, further bits and signs, in either order, and scales.
void pack_iq_s(int format, const uint8_t* block, int n, uint32_t* panel) {
    const int codes = format == IQ3_S ? 64 : 32, scales = format == IQ3_S ? 4 : 8;
    const uint8_t* signs = block + (format == IQ3_S ? 2 + codes + 8 : 2 + codes);
    const uint8_t* high = block + (format == IQ3_S ? 2 + codes : 2 + codes + 32);
    reinterpret_cast<uint16_t*>(panel)[n] = half_at(block);
    panel += PANEL / 2;
    scatter_bytes(block + 2 + codes + 8 + 32, scales, reinterpret_cast<uint8_t*>(panel) + n);
    panel += scales * PANEL / 4;
    for (int g = 0; g < 8; ++g, panel += PANEL) panel[n] = plane_of(signs + 4 * g);
    scatter_bytes(block + 2, codes, reinterpret_cast<uint8_t*>(panel) + n);
    scatter_bytes(high, 8, reinterpret_cast<uint8_t*>(panel + codes * PANEL / 4) + n);
}

// One output's block of IQ2_XS to column n: d; eight bits of a code, its ninth and seven signs, as 16 bits; scales.
void pack_iq2_xs(const uint8_t* block, int n, uint32_t* panel) {
    reinterpret_cast<uint16_t*>(panel)[n] = half_at(block);
    panel += PANEL / 2;
    scatter_bytes(block + 66, 8, reinterpret_cast<uint8_t*>(panel) + n);
    panel += 2 * PANEL;
    auto* codes = reinterpret_cast<uint8_t*>(panel + 8 * PANEL) + n;
    for (int g = 0; g < 8; ++g, panel += PANEL) {
        uint32_t sevens = 0, ninths = 0;
        for (int k = 0; k < 4; ++k, codes += PANEL) {
            const uint32_t code = half_at(block + 2 + 8 * g + 2 * k);
            *codes = static_cast<uint8_t>(code);
            ninths |= (code >> 8 & 1) << k;
            sevens |= code >> 9 << 7 * k;
        }
        panel[n] = plane_of_sevens(sevens, ninths);
    }
}

// One output's block of IQ3_XXS or IQ2_XXS to column n: d; codes, and for each group a word of 28 signs and a scale.
// IQ2_XXS has both group by group.
void pack_iq_xxs(int format, const uint8_t* block, int n, uint32_t* panel) {
    const int group_codes = format == IQ3_XXS ? 8 : 4;
    reinterpret_cast<uint16_t*>(panel)[n] = half_at(block);
    panel += PANEL / 2;
    auto* codes = reinterpret_cast<uint8_t*>(panel + 8 * PANEL) + n;
    for (int g = 0; g < 8; ++g, panel += PANEL, codes += group_codes * PANEL) {
        uint32_t word;
        std::memcpy(&word, block + 2 + (format == IQ3_XXS ? 64 + 4 * g : 8 * g + 4), sizeof word);
        panel[n] = plane_of_sevens(word, word >> 28);
        scatter_bytes(block + 2 + 8 * g, group_codes, codes);
    }
}

void pack_block(int format, const uint8_t* block, int n, uint32_t* panel) {
    const int numbers = block_layout(format).numbers;
    switch (format) {
        case Q2_K: return pack_q2_k(block, n, panel);
        case Q3_K: return pack_q3_k(block, n, panel);
        case Q4_K:
        case Q5_K: return pack_with_mins(format, block, n, panel);
        case Q6_K: return pack_q6_k(block, n, panel);
        case IQ4_XS: return pack_iq4_xs(block, n, panel);
        case IQ3_S:
        case IQ2_S: return pack_iq_s(format, block, n, panel);
        case IQ2_XS: return pack_iq2_xs(block, n, panel);
        case IQ3_XXS:
        case IQ2_XXS: return pack_iq_xxs(format, block, n, panel);
        case INT4_G32:
        case INT4_G64:
        case INT4_G128: return pack_group(1, numbers / 8, block, n, panel);
        case INT8_G32:
        case INT8_G64:
        case INT8_G128: return pack_group(2, numbers / 4, block, n, panel);
        case AFFINE4_G32:
        case AFFINE4_G64:
        case AFFINE4_G128: return pack_group(4, numbers / 8, block, n, panel);
        case AFFINE8_G32:
        case AFFINE8_G64:
        case AFFINE8_G128: return pack_group(4, numbers / 4, block, n, panel);
        default: return pack_small(format, block, n, panel);
    }
}

}  // namespace

void pack_blocks(Pool& pool, int format, const void* rows, uint32_t* packed, int64_t stride, int64_t O, int64_t K) {
    const BlockLayout& layout = block_layout(format);
    const int64_t num_blocks = K / layout.numbers, row_bytes = num_blocks * layout.file_bytes;
    pool.parallel_for(ceil_div(O, PANEL), [&](int64_t panel) {
        const auto* first = static_cast<const uint8_t*>(rows) + panel * PANEL * row_bytes;
        const auto outputs = static_cast<int>(std::min<int64_t>(PANEL, O - panel * PANEL));
        uint32_t* to = packed + panel * stride;
        if (outputs < PANEL) std::fill(to, to + num_blocks * layout.panel_words, 0);
        for (int64_t block = 0; block < num_blocks; ++block)
            for (int n = 0; n < outputs; ++n)
                pack_block(format, first + n * row_bytes + block * layout.file_bytes, n,
                           to + block * layout.panel_words);
    });
}

}  // namespace smoe
