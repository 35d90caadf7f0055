// C interface of pool, packing, linear and experts. Failed allocations become return values here.
#include "smoe_native.h"

#include <algorithm>
#include <new>
#include <system_error>
#include <vector>

#include "c_api/core.h"
#include "gemm/gemm.h"
#include "moe/gate_logits.h"
#include "moe/moe.h"
#include "runtime/isa.h"
#include "runtime/thread_pool.h"

using namespace smoe;

int smoe_abi_version(void) { return SMOE_ABI_VERSION; }

int smoe_isa_available(int isa) { return isa_available(isa); }

int smoe_fastest_isa(void) { return fastest_isa(); }

smoe_pool* smoe_pool_create(int threads) {
    try {
        return reinterpret_cast<smoe_pool*>(new Pool(threads));
    } catch (const std::bad_alloc&) {
        return nullptr;
    } catch (const std::system_error&) {
        return nullptr;
    }
}

void smoe_pool_destroy(smoe_pool* pool) { delete reinterpret_cast<Pool*>(pool); }

void smoe_pool_heartbeat(smoe_pool* pool, uint64_t* counter) { pool_of(pool).set_heartbeat(counter); }

int64_t smoe_panel_size(int format, int64_t K) { return panel_words(format, K) * 4; }

int smoe_pack(smoe_pool* pool, int isa, int dtype, int format, const void* weight, void* packed, int64_t stride,
              int64_t O, int64_t K) {
    return pack(pool_of(pool), isa, dtype, format, weight, static_cast<uint32_t*>(packed), stride / 4, O, K) ? 0 : 4;
}

void smoe_pack_blocks(smoe_pool* pool, int format, const void* rows, void* packed, int64_t stride, int64_t O,
                      int64_t K) {
    pack_blocks(pool_of(pool), format, rows, static_cast<uint32_t*>(packed), stride / 4, O, K);
}

int smoe_linear(smoe_pool* pool, int isa, int dtype, const void* x, const smoe_matrix* matrices, int64_t num_matrices,
                void* y, int64_t T, int64_t K, int wide_output, const smoe_adapter* adapters, int64_t first_term,
                int64_t num_terms) {
    return catch_errors([&] {
        std::vector<Matrix> parts(num_matrices);
        std::transform(matrices, matrices + num_matrices, parts.begin(), matrix_of);
        const LowRankTerms terms{adapters, first_term, num_terms};
        SMOE_CALL(isa, linear(pool_of(pool), dtype, x, parts.data(), num_matrices, y, T, K, wide_output, terms));
    });
}

int smoe_ffn(smoe_pool* pool, int isa, int dtype, const void* x, const smoe_expert* only, void* y, int64_t T, int64_t D,
             int64_t F, smoe_group* group, int64_t first_F, const smoe_adapter* adapters, int64_t first_term) {
    const Expert expert = expert_of(*only);
    const Experts weights{&expert, 1, D, F, group_of(group), first_F, nullptr, 0, {adapters, first_term, 3}};
    return catch_errors([&] { SMOE_CALL(isa, ffn(pool_of(pool), dtype, x, weights, y, T)); });
}

int smoe_moe(smoe_pool* pool, int isa, int dtype, const void* x, const float* gate, const smoe_expert* experts, void* y,
             const int32_t* experts_per_token, const uint8_t* allowed, int32_t* expert_ids, int64_t T, int64_t D,
             int64_t F, int64_t E, int64_t max_k, smoe_group* group, int64_t first_F, smoe_store* store,
             int64_t stored_layer, const smoe_adapter* adapters, int64_t first_term) {
    return catch_errors([&] {
        std::vector<Expert> all(E);
        std::transform(experts, experts + E, all.begin(), expert_of);
        const Experts weights{all.data(),
                              E,
                              D,
                              F,
                              group_of(group),
                              first_F,
                              store_of(store),
                              stored_layer,
                              {adapters, first_term, 3 * E}};
        const Routing routing{experts_per_token, allowed, expert_ids, max_k};
        SMOE_CALL(isa, moe(pool_of(pool), dtype, x, gate, weights, y, T, routing));
    });
}

int smoe_route(smoe_pool* pool, int isa, int dtype, const void* x, const float* gate, const int32_t* experts_per_token,
               const uint8_t* allowed, int32_t* expert_ids, int64_t T, int64_t D, int64_t E, int64_t max_k) {
    const Routing routing{experts_per_token, allowed, expert_ids, max_k};
    return catch_errors([&] { SMOE_CALL(isa, choose_experts(pool_of(pool), dtype, x, gate, E, D, T, routing)); });
}

void smoe_gate_logits(smoe_pool* pool, int dtype, const void* x, const float* gate, float* logits, int64_t T, int64_t D,
                      int64_t E) {
    report_gate_logits(pool_of(pool), dtype, x, nullptr, gate, logits, T, D, E);
}
