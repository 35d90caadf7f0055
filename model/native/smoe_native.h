/* C interface of the CPU backend; model/ops/native/ops.py calls it.
 *
 * dtype of activations and of unpacked weights: 0 float32, 1 bfloat16. format of packed weights: 0 float32 (if x is),
 * 1 bfloat16 (to which a float32 x is rounded), 2 int8, 3 int4, or a block format of GGUF files: 4 Q4_0, 5 Q4_1, 6
 * Q5_0, 7 Q5_1, 8 Q8_0, 9 Q4_K, 10 Q5_K, 11 Q6_K; or 4-bit groups with zero points: 12 INT4_G32, 13 INT4_G64, 14
 * INT4_G128 (model/native/gemm/block_formats.h); 15 Q2_K, 16 Q3_K, 17 IQ4_NL, 18 IQ4_XS of GGUF files; 8-bit groups
 * with zero points: 19 INT8_G32, 20 INT8_G64, 21 INT8_G128; groups with minima: 22 AFFINE4_G32, 23 AFFINE4_G64, 24
 * AFFINE4_G128, 25 AFFINE8_G32, 26 AFFINE8_G64, 27 AFFINE8_G128; code books of GGUF files: 28 IQ3_S, 29 IQ3_XXS, 30
 * IQ2_S, 31 IQ2_XS, 32 IQ2_XXS; 64 bfloat16 in 12 bits (model/native/gemm/coded_weights.h). isa: 0 portable, 1
 * AVX2 with FMA, 2 the same with AVX-VNNI, 3 AVX-512, 4 the same with VNNI, 5 the same with BF16 dot products, 6 the
 * same with AMX; 7 ARM's NEON with dot products of bytes, 8 the same with products of matrices of bytes and bfloat16.
 * For a given isa, every row's result depends on that row alone. Functions that return int return 0, 1 if an allocation
 * failed, 2 if the group has ended, or 3 if an expert could not be read. Shape letters: model/ops/interface.py;
 * matrices are row-major and contiguous.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define SMOE_API __attribute__((visibility("default")))
#else
#define SMOE_API
#endif

#define SMOE_ABI_VERSION 24

#ifdef __cplusplus
extern "C" {
#endif

typedef struct smoe_pool smoe_pool;

/* Version of this interface. The caller compares it with its own before it calls anything else. */
SMOE_API int smoe_abi_version(void);
/* 1 if this library contains the isa's kernels and this CPU runs them, else 0. */
SMOE_API int smoe_isa_available(int isa);
/* The available isa whose kernels are the fastest on this CPU. */
SMOE_API int smoe_fastest_isa(void);

/* Start a thread pool; NULL if the threads cannot be started. */
SMOE_API smoe_pool* smoe_pool_create(int threads);
SMOE_API void smoe_pool_destroy(smoe_pool*);
/* Set the counter that the calling thread increments with each task it runs; NULL: none. Only that thread writes it. */
SMOE_API void smoe_pool_heartbeat(smoe_pool*, uint64_t* counter);

/* Bytes of a panel, which packs 32 outputs of a matrix [O, K]; the last panel of a matrix is padded. */
SMOE_API int64_t smoe_panel_size(int format, int64_t K);
/* Pack weight [O, K] of dtype into panels, `stride` bytes from one to the next. The result is the same for every isa.
 * Format 64 needs bfloat16; 4 if some panel has too many exponents for it. */
SMOE_API int smoe_pack(smoe_pool*, int isa, int dtype, int format, const void* weight, void* packed, int64_t stride,
                       int64_t O, int64_t K);
/* Pack rows of blocks [O, K]; K is a multiple of the numbers in a block. */
SMOE_API void smoe_pack_blocks(smoe_pool*, int format, const void* rows, void* packed, int64_t stride, int64_t O,
                               int64_t K);

/* Ranks that share a network: each has a part of every matrix's outputs, and gathers join their results. NULL: one rank
 * has all. Of ranks in one host, `memory`: smoe_group_bytes() bytes that all ranks map, aligned to 64, zeros before the
 * first rank uses it. No gathered row may be larger than buffer_bytes. */
typedef struct smoe_group smoe_group;
SMOE_API int64_t smoe_group_bytes(int size, int64_t buffer_bytes);
SMOE_API smoe_group* smoe_group_create(void* memory, int rank, int size, int64_t buffer_bytes);
SMOE_API void smoe_group_destroy(smoe_group*);
/* whole [T, whole_bytes] from each rank's part [T, part_bytes], which begins at first_byte of a row. Parts are whole
 * units of unit_bytes, except at the end of a row. */
SMOE_API int smoe_group_gather(smoe_group*, const void* part, void* whole, int64_t T, int64_t whole_bytes,
                               int64_t first_byte, int64_t part_bytes, int64_t unit_bytes);
/* Of ranks on several hosts: `sockets` [size] are connected streams to each rank; that of `rank` itself is not used. A
 * gather waits at most timeout_ms for the next byte from or to another rank. When a call returns 2, lost_rank is a rank
 * that is gone, because it was silent for so long (is_late) or because its connection broke. The caller keeps the
 * struct until the group is destroyed, and may change timeout_ms between gathers. NULL if memory is short. */
typedef struct {
    const int* sockets;
    int rank, size, timeout_ms, lost_rank, is_late;
} smoe_sockets;
SMOE_API smoe_group* smoe_group_of_sockets(smoe_sockets*);
/* The functions below are for groups over memory only. */
/* Let all gathers of all ranks fail from now on; any thread may call it. */
SMOE_API void smoe_group_end(smoe_group*);
/* Number of gathers, in pieces of the buffer's size, that a rank has reached, modulo 2^32. */
SMOE_API uint32_t smoe_group_arrivals(const smoe_group*, int rank);

/* Experts of a network that is larger than memory: some lie in slots, the others are read when rows need them. In the
 * structs below they have the addresses at which the source would be mapped; nothing is read there. One caller at a
 * time. */
typedef struct smoe_store smoe_store;
/* Read up to `bytes` bytes from `position` on; return their number, 0 at the end of the source, or a negative error
 * number (errno). Several threads call it at once. All numbers are multiples of 4096. */
typedef int64_t smoe_read(void* context, void* memory, int64_t bytes, int64_t position);
/* Let go of the memory that was read into, if it is where the source is mapped. */
typedef void smoe_drop(void* context, void* memory, int64_t bytes, int64_t position);
typedef struct {
    int64_t layers, experts, slots, slot_bytes, readers; /* experts of each layer; number of threads that read */
    const int64_t* positions;                            /* [layers, experts] in the source */
    const int64_t* expert_bytes; /* [layers] of each expert of a layer; at most slot_bytes, a multiple of 4096 */
    void* memory;                /* [slots, slot_bytes] at an address that is a multiple of 4096; NULL: where the source
                                    is mapped */
    const void* mapped;          /* address of the source's first byte */
    smoe_read* read;
    smoe_drop* drop; /* NULL if memory is not */
    void* context;
} smoe_store_layout;
typedef struct {
    int64_t hits, misses;   /* experts that a layer of a step needed: in memory, or to be read */
    int64_t read_bytes;     /* of those that were needed */
    int64_t waited_ns;      /* time without anything to compute */
    int64_t foreseen;       /* of the misses: those that were read ahead, or were to be */
    int64_t unneeded_bytes; /* that were read for layers that did not need them */
} smoe_store_counts;
/* Functions for a file; context: its descriptor. smoe_populate reads into the page cache, and maps the pages where the
 * file is mapped; smoe_unpopulate drops them from both, unless another process has mapped them. */
SMOE_API int64_t smoe_read_file(void* context, void* memory, int64_t bytes, int64_t position);
SMOE_API int64_t smoe_populate(void* context, void* memory, int64_t bytes, int64_t position);
SMOE_API void smoe_unpopulate(void* context, void* memory, int64_t bytes, int64_t position);
/* NULL if the threads cannot be started. The tables of the layout are copied. */
SMOE_API smoe_store* smoe_store_create(const smoe_store_layout*);
SMOE_API void smoe_store_destroy(smoe_store*);
SMOE_API void smoe_store_get_counts(const smoe_store*, smoe_store_counts*);
/* The last expert that could not be read: layer, expert, position, and error number or 0 (the source has ended). */
SMOE_API void smoe_store_get_fault(const smoe_store*, int64_t fault[4]);

/* A packed matrix: `stride` bytes from one panel of 32 outputs to the next. order [K]: number i of an output is
 * multiplied by x[order[i]]; in groups only, elsewhere NULL, which means in order. */
typedef struct {
    const void* panels;
    int64_t outputs, stride, format;
    const int32_t* order;
} smoe_matrix;
/* w1 and w3 [F, D], w2 [D, F]. */
typedef struct {
    smoe_matrix w1, w3, w2;
} smoe_expert;

/* A low-rank term of one matrix, for a LoRA adapter: y[first_output + n] += scale * sum_j b[j, n] * sum_k a[j, k] x[k],
 * computed in float32 and added before y is rounded. a is [ceil(K / 4), R, 4], with four neighbouring k of each of R =
 * rank rounded up to a multiple of 4; b is in panels of 32 outputs, [ceil(outputs / 32), rank, 32]. In bfloat16, a is
 * [ceil(K / 8), R, 4] pairs of k and k + 4, and b [ceil(outputs / 32), ceil(rank / 2), 32] pairs of neighbouring ranks.
 * Zeros beyond K, rank and outputs. rank 0: no term. */
typedef struct {
    const void *a, *b;
    int64_t rank, dtype, first_output, outputs;
    float scale;
} smoe_low_rank;
/* Terms of an adapter, [L, 4 + 3E]: of each layer those of q, k, v and output, then of each expert those of w1, w3 and
 * w2; a dense FFN is one expert. NULL: no adapter. The functions below take the adapters of their rows, [T], or NULL
 * where no row has one; first_term: the first of the terms that belong to the function. */
typedef const smoe_low_rank* smoe_adapter;

/* y[T, O] = x[T, K] weight^T for matrices one below the other, O outputs together; y in dtype, or in float32 where
 * wide_output is set. */
SMOE_API int smoe_linear(smoe_pool*, int isa, int dtype, const void* x, const smoe_matrix* matrices,
                         int64_t num_matrices, void* y, int64_t T, int64_t K, int wide_output,
                         const smoe_adapter* adapters, int64_t first_term, int64_t num_terms);
/* y[T, D] = w2(silu(w1 x) * (w3 x)). In a group w1 and w3 have the outputs of F from first_F on, and w2 some of D,
 * which are the columns of y. */
SMOE_API int smoe_ffn(smoe_pool*, int isa, int dtype, const void* x, const smoe_expert*, void* y, int64_t T, int64_t D,
                      int64_t F, smoe_group*, int64_t first_F, const smoe_adapter* adapters, int64_t first_term);
/* gate [E, D] float32; experts [E], in which each of the three matrices has one format. experts_per_token [T], each
 * 1 .. max_k; allowed [T, E] (0: disabled; at least experts_per_token are enabled), or NULL; expert_ids [T, max_k] is
 * written: ids by descending gate logit, then -1. The group is as in smoe_ffn. With a store, and
 * without a group, the experts are those of its layer stored_layer. */
SMOE_API int smoe_moe(smoe_pool*, int isa, int dtype, const void* x, const float* gate, const smoe_expert* experts,
                      void* y, const int32_t* experts_per_token, const uint8_t* allowed, int32_t* expert_ids, int64_t T,
                      int64_t D, int64_t F, int64_t E, int64_t max_k, smoe_group*, int64_t first_F, smoe_store*,
                      int64_t stored_layer, const smoe_adapter* adapters, int64_t first_term);
/* Routing only: write the expert_ids that smoe_moe would write. */
SMOE_API int smoe_route(smoe_pool*, int isa, int dtype, const void* x, const float* gate,
                        const int32_t* experts_per_token, const uint8_t* allowed, int32_t* expert_ids, int64_t T,
                        int64_t D, int64_t E, int64_t max_k);
/* Gate logits of all rows [T, E] for reports, summed in float64; those of smoe_moe and smoe_route are float32. */
SMOE_API void smoe_gate_logits(smoe_pool*, int dtype, const void* x, const float* gate, float* logits, int64_t T,
                               int64_t D, int64_t E);

/* y = x / sqrt(mean(x^2) + eps) * weight, [T, D]. */
SMOE_API void smoe_rms_norm(smoe_pool*, int isa, int dtype, const void* x, const void* weight, void* y, int64_t T,
                            int64_t D, float eps);
/* x += y, each sum rounded to dtype, then out = x / sqrt(mean(x^2) + eps) * weight; all [T, D]. */
SMOE_API void smoe_add_rms_norm(smoe_pool*, int isa, int dtype, void* x, const void* y, const void* weight, void* out,
                                int64_t T, int64_t D, float eps);
/* cos and sin [T, K/2] of the float32 product position * inverse_frequency [K/2], each times factor. */
SMOE_API void smoe_rotary_angles(smoe_pool*, int isa, const int64_t* positions, const float* inverse_frequency,
                                 float* cos, float* sin, int64_t T, int64_t K, float factor);
/* qkv [T, (H + 2G) * K]; q_out in q_dtype, which is dtype or bfloat16; caches [num_blocks, block_size, G] rows of K
 * numbers in kv_dtype (2 int8: K bytes, then one float32 scale), or the same bytes in the tiles of attention/kv_tile.h
 * if kv_dtype is not float32 and block_size is a multiple of 16; slots [T]. */
SMOE_API int smoe_rope_and_store_kv(smoe_pool*, int isa, int dtype, int q_dtype, int kv_dtype, const void* qkv,
                                    void* q_out, void* k_cache, void* v_cache, const float* cos, const float* sin,
                                    const int64_t* slots, int64_t T, int64_t H, int64_t G, int64_t K,
                                    int64_t block_size);
/* q [T, H, K] in dtype, out [T, H, K] in out_dtype; query_start [S + 1], context_len [S], block_tables [S, M]; window
 * 0: none. */
SMOE_API int smoe_attention(smoe_pool*, int isa, int dtype, int out_dtype, int kv_dtype, const void* q,
                            const void* k_cache, const void* v_cache, void* out, const int32_t* query_start,
                            const int32_t* context_len, const int32_t* block_tables, int64_t S, int64_t M,
                            int64_t block_size, int64_t H, int64_t G, int64_t K, int64_t window);

/* A whole network, for smoe_forward: the functions above in one call. In a group V, D and F are the whole sizes, of
 * which this rank's matrices have the outputs from first_V, first_D and first_F on; H and G are this rank's heads, from
 * head first_H of all_H on. */
typedef struct {
    const void *attention_norm, *ffn_norm;
    const smoe_matrix *qkv, *output;
    int64_t num_qkv;   /* matrices of qkv, one below the other */
    const float* gate; /* [E, D], or NULL: the only expert is a dense FFN */
    const smoe_expert* experts;
    smoe_store* store; /* NULL: the experts lie at their addresses */
    int64_t stored_layer;
    void *k_cache, *v_cache;
} smoe_layer;
typedef struct {
    int embedding_dtype; /* residual_dtype; or bfloat16, or 3: float16 */
    int query_dtype;     /* residual_dtype, or bfloat16 */
    int residual_dtype;  /* of norms, the sums between layers, attention's output and what products read and return */
    int kv_dtype;
    float eps, rope_factor;
    int64_t V, D, F, E, H, G, K, L; /* L layers */
    int64_t block_size, window;     /* window 0: none */
    int64_t all_H, first_H, first_V, first_D, first_F;
    smoe_group* group; /* NULL: one rank */
    const void *embedding, *norm;
    const smoe_matrix* head;
    const float* inverse_frequency; /* [K/2] */
    const smoe_layer* layers;       /* [L] */
} smoe_network;
/* One step: the fields of model/forward_batch.py. */
typedef struct {
    int64_t T, S, M, N, max_k;
    const int64_t *token_ids, *positions, *slots; /* [T] */
    const int64_t* logit_rows;                    /* [N] */
    const int32_t *query_start, *context_len, *block_tables;
    const int32_t* experts_per_token; /* [T] */
    const uint8_t* allowed;           /* [L, T, E], or NULL */
    int32_t* expert_ids;              /* [L, T, max_k], written; this and the two above: NULL without experts */
    uint8_t* finite;                  /* [T], written: 1 if the row has no NaN or infinity; or NULL */
    float* logits;                    /* [N, V], written */
    int64_t P;                        /* rows with reported gates */
    const int64_t* gate_rows;         /* [P] */
    float* gate_logits;               /* [L, P, E], written */
    const smoe_adapter* adapters;     /* [T], or NULL: no row has one */
} smoe_step;
SMOE_API int smoe_forward(smoe_pool*, int isa, const smoe_network*, const smoe_step*);

/* N rows of logits [N, V]; each row samples a token or scores its target token. */
#define SMOE_SAMPLING_FLOAT_PARAMS 6
#define SMOE_SAMPLING_INT_PARAMS 12
typedef struct {
    int64_t N, V;
    const float* logits;
    const float* float_params; /* [N, 6]: temperature, top_p, min_p; repetition, frequency and presence penalty */
    const int64_t* int_params; /* [N, 12]: the columns of model/sampling_batch.py */
    int32_t* history;          /* [.., history_len]: each request's tokens; the sampled token is appended */
    int64_t history_len;
    const int32_t* bias_ids; /* biases added to logits; int_params give each row's part */
    const float* bias_values;
    const uint32_t* masks; /* [.., mask_words]: bit i % 32 of word i / 32 is set where token i is allowed */
    int64_t mask_words;
    int64_t* token_ids;  /* [N] */
    uint8_t* status;     /* [N]: 0 sampled or scored; 1 the logits are not finite; 2 no token is allowed */
    float* logprob;      /* [N], log probability of the token, if the row requests log probabilities */
    int32_t* top_ids;    /* [N, max_logprobs]: top tokens, descending, ties to the lower id */
    float* top_logprobs; /* [N, max_logprobs] */
    int64_t max_logprobs;
} smoe_sampling;
SMOE_API int smoe_sample(smoe_pool*, int isa, const smoe_sampling*);

/* Measured limits of the machine. smoe_read_all reads a buffer once on all threads and returns the sum of its words.
 * smoe_peak_operations runs `rounds` rounds of multiply-adds in registers on each thread and returns the number of
 * operations, two per multiply-add; arithmetic: 0 float32, 1 bfloat16, 2 int8; returns 0 if the isa has none. */
SMOE_API uint32_t smoe_read_all(smoe_pool*, int isa, const void* buffer, int64_t num_bytes);
SMOE_API int64_t smoe_peak_operations(smoe_pool*, int isa, int arithmetic, int64_t rounds);

#ifdef __cplusplus
}
#endif
