// All layers of a step in one call: the same sequence as model/mixtral.py, over the functions of the C interface.
#include <algorithm>
#include <cstring>
#include <vector>

#include "attention/norm_rope.h"
#include "c_api/core.h"
#include "gemm/quant_formats.h"
#include "moe/gate_logits.h"

namespace smoe {
namespace {

constexpr int64_t LINE = 64;                  // alignment of intermediate results in bytes
constexpr int FLOAT16 = 3;                    // embedding_dtype; elsewhere 3 is INT4
constexpr int64_t LOOK_AHEAD = 1;             // layers whose experts are read ahead
constexpr int64_t LOOK_AHEAD_OF_ONE_ROW = 3;  // it computes a layer in less time than an expert is read

// Intermediate results of a step, consecutive in memory that the pool keeps.
class Activations {
  public:
    Activations(const smoe_network& network, const smoe_step& step) : item_(network.residual_dtype == FLOAT32 ? 4 : 2) {
        const int64_t T = step.T, heads = network.H + 2 * network.G;
        x_ = reserve(T * network.D * item_);
        normed_ = reserve(T * network.D * item_);
        y_ = reserve(T * network.D * item_);
        qkv_ = reserve(T * heads * network.K * item_);
        q_ = reserve(T * network.H * network.K * item_);
        attended_ = reserve(T * network.all_H * network.K * item_);
        cos_ = reserve(T * network.K / 2 * sizeof(float));
        sin_ = reserve(T * network.K / 2 * sizeof(float));
        last_x_ = reserve(step.N * network.D * item_);
        last_normed_ = reserve(step.N * network.D * item_);
        part_ = network.group ? reserve(largest_part(network, step)) : size_;
    }

    void place(Pool& pool) { memory_ = pool.activations(size_); }

    std::byte* x() const { return memory_ + x_; }                // [T, D]
    std::byte* normed() const { return memory_ + normed_; }      // [T, D]
    std::byte* y() const { return memory_ + y_; }                // [T, D] output of attention or FFN, added to x
    std::byte* qkv() const { return memory_ + qkv_; }            // [T, (H + 2G) * K]
    std::byte* q() const { return memory_ + q_; }                // [T, H, K]
    std::byte* attended() const { return memory_ + attended_; }  // [T, all_H * K]
    float* cos() const { return reinterpret_cast<float*>(memory_ + cos_); }  // [T, K/2]
    float* sin() const { return reinterpret_cast<float*>(memory_ + sin_); }  // [T, K/2]
    std::byte* last_x() const { return memory_ + last_x_; }                  // [N, D] rows of x that need logits
    std::byte* last_normed() const { return memory_ + last_normed_; }        // [N, D]
    std::byte* part() const { return memory_ + part_; }  // in a group: this rank's columns of what is gathered
    int64_t item() const { return item_; }

  private:
    // Bytes of the largest part; no number is wider than one of residual_dtype, except logits.
    int64_t largest_part(const smoe_network& network, const smoe_step& step) const {
        const int64_t rows = std::max(network.D, network.H * network.K);
        return std::max<int64_t>(step.T * rows * item_, step.N * network.head->outputs * sizeof(float));
    }

    size_t reserve(int64_t bytes) {
        const size_t offset = size_;
        size_ += ceil_div(bytes, LINE) * LINE;
        return offset;
    }

    const int64_t item_;  // bytes per number, at most
    size_t size_ = 0;
    size_t x_, normed_, y_, qkv_, q_, attended_, cos_, sin_, last_x_, last_normed_, part_;
    std::byte* memory_ = nullptr;
};

// Executes one call of smoe_forward. Throws std::bad_alloc, GroupEnded and ReadFault.
class Forward {
  public:
    Forward(smoe_pool* pool, int isa, const smoe_network& network, const smoe_step& step)
        : pool_(pool), isa_(isa), network_(network), step_(step), at_(network, step) {
        at_.place(pool_of(pool));
    }

    void run() {
        embed();
        smoe_rotary_angles(pool_, isa_, step_.positions, network_.inverse_frequency, at_.cos(), at_.sin(), step_.T,
                           network_.K, network_.rope_factor);
        norm(at_.x(), network_.layers[0].attention_norm, at_.normed(), step_.T);
        for (int64_t index = 0; index < network_.L; ++index) {
            const smoe_layer& layer = network_.layers[index];
            attend(layer, index);
            add_and_norm(layer.ffn_norm);
            if (step_.P) report_gate(layer, index);
            if (index + 1 == network_.L) break;
            if (layer.store) expect_experts(index);
            feed_forward(layer, at_.normed(), step_.T, choices(index), {step_.adapters, first_term(index) + 4});
            add_and_norm(network_.layers[index + 1].attention_norm);
        }
        if (step_.finite) write_finite_flags();
        step_.N ? compute_logits() : route_last_layer();
    }

  private:
    // Routing options of the rows for one layer, and the output of its gate.
    struct Choices {
        const int32_t* experts_per_token;
        const uint8_t* allowed;
        int32_t* expert_ids;
    };

    Choices choices(int64_t layer) const {
        return {step_.experts_per_token, step_.allowed ? step_.allowed + layer * step_.T * network_.E : nullptr,
                step_.expert_ids + layer * step_.T * step_.max_k};
    }

    // First term of a layer in an adapter.
    int64_t first_term(int64_t layer) const { return layer * (4 + 3 * network_.E); }

    // x = embeddings of the tokens.
    void embed() const {
        if (network_.embedding_dtype == network_.residual_dtype)
            return gather(network_.embedding, step_.token_ids, step_.T, at_.x());
        const bool is_float16 = network_.embedding_dtype == FLOAT16;
        const auto* table = static_cast<const uint16_t*>(network_.embedding);
        auto* x = reinterpret_cast<float*>(at_.x());
        for (int64_t row = 0; row < step_.T; ++row, x += network_.D) {
            const uint16_t* numbers = table + step_.token_ids[row] * network_.D;
            is_float16 ? widen_float16(numbers, x) : widen_bfloat16(numbers, x);
        }
    }

    void widen_bfloat16(const uint16_t* numbers, float* x) const {
        for (int64_t d = 0; d < network_.D; ++d) x[d] = float_of(uint32_t{numbers[d]} << 16);
    }

    // With the exponent bits in place a number is 2^112 times too small; products by powers of two are exact.
    void widen_float16(const uint16_t* numbers, float* x) const {
        for (int64_t d = 0; d < network_.D; ++d) {
            const uint32_t number = numbers[d], special = (number & 0x7c00) == 0x7c00 ? 0x7f800000 : 0;
            const uint32_t magnitude = word_of(float_of((number & 0x7fff) << 13) * 0x1p112f);
            x[d] = float_of(magnitude | (number & 0x8000) << 16 | special);
        }
    }

    static float float_of(uint32_t word) {
        float number;
        std::memcpy(&number, &word, sizeof number);
        return number;
    }

    static uint32_t word_of(float number) {
        uint32_t word;
        std::memcpy(&word, &number, sizeof word);
        return word;
    }

    // Copy rows ids[0] .. of a table [.., D] in residual_dtype.
    void gather(const void* table, const int64_t* ids, int64_t num_rows, std::byte* rows) const {
        const size_t row_bytes = network_.D * at_.item();
        for (int64_t row = 0; row < num_rows; ++row)
            std::memcpy(rows + row * row_bytes, static_cast<const std::byte*>(table) + ids[row] * row_bytes, row_bytes);
    }

    void norm(const void* x, const void* weight, void* normed, int64_t num_rows) const {
        smoe_rms_norm(pool_, isa_, network_.residual_dtype, x, weight, normed, num_rows, network_.D, network_.eps);
    }

    // x += y, normed = RMSNorm(x).
    void add_and_norm(const void* weight) const {
        smoe_add_rms_norm(pool_, isa_, network_.residual_dtype, at_.x(), at_.y(), weight, at_.normed(), step_.T,
                          network_.D, network_.eps);
    }

    // Turn the error code of a function of the C interface into an exception.
    static void check(int error) {
        if (error == 2) throw GroupEnded{};
        if (error == 3) throw ReadFault{};  // the store knows which
        if (error) throw std::bad_alloc{};
    }

    // y = Attention(normed).
    void attend(const smoe_layer& layer, int64_t index) const {
        const int64_t T = step_.T, D = network_.D, H = network_.H, G = network_.G, K = network_.K;
        const int dtype = network_.residual_dtype, q_dtype = network_.query_dtype, kv_dtype = network_.kv_dtype;
        linear(dtype, at_.normed(), layer.qkv, layer.num_qkv, at_.qkv(), T, D, false,
               {step_.adapters, first_term(index), 3});
        check(smoe_rope_and_store_kv(pool_, isa_, dtype, q_dtype, kv_dtype, at_.qkv(), at_.q(), layer.k_cache,
                                     layer.v_cache, at_.cos(), at_.sin(), step_.slots, T, H, G, K,
                                     network_.block_size));
        std::byte* out = part_or(at_.attended());
        check(smoe_attention(pool_, isa_, q_dtype, dtype, kv_dtype, at_.q(), layer.k_cache, layer.v_cache, out,
                             step_.query_start, step_.context_len, step_.block_tables, step_.S, step_.M,
                             network_.block_size, H, G, K, network_.window));
        gather_columns(at_.attended(), T, {network_.all_H, network_.first_H, H, H / G}, K * at_.item());
        linear(dtype, at_.attended(), layer.output, 1, part_or(at_.y()), T, network_.all_H * K, false,
               {step_.adapters, first_term(index) + 3, 1});
        gather_columns(at_.y(), T, {D, network_.first_D, layer.output->outputs, PANEL}, at_.item());
    }

    void linear(int dtype, const void* x, const smoe_matrix* matrices, int64_t count, void* y, int64_t num_rows,
                int64_t K, bool wide, const LowRankTerms& terms) const {
        check(smoe_linear(pool_, isa_, dtype, x, matrices, count, y, num_rows, K, wide, terms.adapters, terms.first,
                          terms.count));
    }

    // Return where to compute columns that gather_columns() joins in `whole`.
    std::byte* part_or(void* whole) const { return network_.group ? at_.part() : static_cast<std::byte*>(whole); }

    // Columns of a rank: `count` from `first` of `all`, in whole units except at the end.
    struct Columns {
        int64_t all, first, count, unit;
    };

    // whole [num_rows, all] from each rank's part(); one column has `bytes` bytes. Nothing to do without a group.
    void gather_columns(void* whole, int64_t num_rows, const Columns& columns, int64_t bytes) const {
        if (!network_.group) return;
        group_of(network_.group)
            ->gather(at_.part(), whole, num_rows,
                     {columns.all * bytes, columns.first * bytes, columns.count * bytes, columns.unit * bytes});
    }

    // y = FFN(normed) for num_rows rows.
    void feed_forward(const smoe_layer& layer, const void* normed, int64_t num_rows, const Choices& choices,
                      const LowRankTerms& terms) const {
        const int64_t D = network_.D, F = network_.F, first_F = network_.first_F;
        const int dtype = network_.residual_dtype;
        std::byte* y = part_or(at_.y());
        if (layer.gate)
            check(smoe_moe(pool_, isa_, dtype, normed, layer.gate, layer.experts, y, choices.experts_per_token,
                           choices.allowed, choices.expert_ids, num_rows, D, F, network_.E, step_.max_k, network_.group,
                           first_F, layer.store, layer.stored_layer, terms.adapters, terms.first));
        else
            check(smoe_ffn(pool_, isa_, dtype, normed, layer.experts, y, num_rows, D, F, network_.group, first_F,
                           terms.adapters, terms.first));
        gather_columns(at_.y(), num_rows, {D, network_.first_D, layer.experts->w2.outputs, PANEL}, at_.item());
    }

    // Name to the store the experts that the next layers will probably need: those that their gates choose for the
    // residual stream as it is before this layer's experts add to it. Overwrites y.
    void expect_experts(int64_t index) const {
        std::vector<int32_t> ids(step_.T * step_.max_k);
        const int64_t look_ahead = step_.T == 1 ? LOOK_AHEAD_OF_ONE_ROW : LOOK_AHEAD;
        for (int64_t next = index + 1; next < std::min(index + 1 + look_ahead, network_.L); ++next) {
            const smoe_layer& layer = network_.layers[next];
            if (next + 1 == network_.L && step_.N < step_.T) return;  // its experts are computed for N rows
            norm(at_.x(), layer.ffn_norm, at_.y(), step_.T);
            const auto [experts_per_token, allowed, unused] = choices(next);
            check(smoe_route(pool_, isa_, network_.residual_dtype, at_.y(), layer.gate, experts_per_token, allowed,
                             ids.data(), step_.T, network_.D, network_.E, step_.max_k));
            for (int32_t expert = 0; expert < network_.E; ++expert)
                if (std::count(ids.begin(), ids.end(), expert))
                    store_of(layer.store)->expect(layer.stored_layer, expert);
        }
    }

    // Write the gate logits of the rows that report them.
    void report_gate(const smoe_layer& layer, int64_t index) const {
        report_gate_logits(pool_of(pool_), network_.residual_dtype, at_.normed(), step_.gate_rows, layer.gate,
                           step_.gate_logits + index * step_.P * network_.E, step_.P, network_.D, network_.E);
    }

    // Set step.finite: a NaN or infinity in K, V or an expert propagates to the row's sum.
    void write_finite_flags() const {
        for (int64_t row = 0; row < step_.T; ++row) {
            const std::byte* x = at_.x() + row * network_.D * at_.item();
            step_.finite[row] = at_.item() == 4 ? all_finite<uint32_t, 0x7f800000>(x, network_.D)
                                                : all_finite<uint16_t, 0x7f80>(x, network_.D);
        }
    }

    // True if no number has all exponent bits set, which means infinity or NaN.
    template <typename Bits, Bits EXPONENT>
    static bool all_finite(const std::byte* numbers, int64_t count) {
        const Bits* bits = reinterpret_cast<const Bits*>(numbers);
        bool is_finite = true;
        for (int64_t index = 0; index < count; ++index) is_finite &= (bits[index] & EXPONENT) != EXPONENT;
        return is_finite;
    }

    // After the last layer's attention only rows with logits are used, so experts of other rows are not computed. Their
    // expert ids are still reported.
    void route_last_layer() const {
        const int64_t last = network_.L - 1;
        if (!network_.layers[last].gate) return;
        const Choices all = choices(last);
        check(smoe_route(pool_, isa_, network_.residual_dtype, at_.normed(), network_.layers[last].gate,
                         all.experts_per_token, all.allowed, all.expert_ids, step_.T, network_.D, network_.E,
                         step_.max_k));
    }

    // Routing options of logit_rows for the last layer, with memory for their expert ids.
    class LastChoices {
      public:
        LastChoices(const Choices& all, const smoe_step& step, int64_t E)
            : k_(step.N), allowed_(all.allowed ? step.N * E : 0), chosen_(step.N * step.max_k) {
            for (int64_t n = 0; n < step.N; ++n) {
                k_[n] = all.experts_per_token[step.logit_rows[n]];
                if (all.allowed) std::memcpy(&allowed_[n * E], all.allowed + step.logit_rows[n] * E, E);
            }
        }
        Choices choices() { return {k_.data(), allowed_.empty() ? nullptr : allowed_.data(), chosen_.data()}; }

      private:
        std::vector<int32_t> k_;
        std::vector<uint8_t> allowed_;
        std::vector<int32_t> chosen_;
    };

    // Adapters of the rows that need logits; empty if no row of the step has one.
    std::vector<smoe_adapter> adapters_of_logit_rows() const {
        std::vector<smoe_adapter> adapters(step_.adapters ? step_.N : 0);
        for (size_t n = 0; n < adapters.size(); ++n) adapters[n] = step_.adapters[step_.logit_rows[n]];
        return adapters;
    }

    // Compute the last layer's FFN, the final norm and the head for the rows that need logits.
    void compute_logits() const {
        const int64_t N = step_.N;
        const smoe_layer& layer = network_.layers[network_.L - 1];
        gather(at_.x(), step_.logit_rows, N, at_.last_x());
        gather(at_.normed(), step_.logit_rows, N, at_.last_normed());
        const std::vector<smoe_adapter> adapters = adapters_of_logit_rows();
        const LowRankTerms terms{step_.adapters ? adapters.data() : nullptr, first_term(network_.L - 1) + 4};
        if (layer.gate) {
            LastChoices last(choices(network_.L - 1), step_, network_.E);
            route_last_layer();
            feed_forward(layer, at_.last_normed(), N, last.choices(), terms);
        } else {
            feed_forward(layer, at_.last_normed(), N, {}, terms);
        }
        smoe_add_rms_norm(pool_, isa_, network_.residual_dtype, at_.last_x(), at_.y(), network_.norm, at_.last_normed(),
                          N, network_.D, network_.eps);
        linear(network_.residual_dtype, at_.last_normed(), network_.head, 1, part_or(step_.logits), N, network_.D, true,
               {});
        gather_columns(step_.logits, N, {network_.V, network_.first_V, network_.head->outputs, PANEL}, sizeof(float));
    }

    smoe_pool* const pool_;
    const int isa_;
    const smoe_network& network_;
    const smoe_step& step_;
    Activations at_;
};

}  // namespace
}  // namespace smoe

using namespace smoe;

int smoe_forward(smoe_pool* pool, int isa, const smoe_network* network, const smoe_step* step) {
    return catch_errors([&] { Forward(pool, isa, *network, *step).run(); });
}
