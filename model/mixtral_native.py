"""The network on the CPU backend: all layers of a step in one call of the C++ library.

The results are bit for bit those of Mixtral.forward; work that no logits depend on is skipped. The addresses of weights
and caches are passed once per KV pool, those of a step's tensors with each step, or once while decode steps share a
batch: see smoe_forward in model/native/smoe_native.h.
"""

import weakref
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from model.cut import PANEL
from model.forward_batch import ForwardBatch
from model.kv_pool import KvPool
from model.mixtral import LayerWeights, Mixtral, uniform_routing
from model.ops.interface import Ops
from model.ops.native.expert_store import ExpertStore
from model.ops.native.ops import NativeOps, inverse_frequencies
from model.ops.native.packed_weights import DTYPES, EMBEDDING_DTYPES, KV_DTYPES, NativeExperts, NativeMoe
from model.ops.native.structs import LayerArguments, NetworkArguments, StepArguments


def in_one_call(model: Mixtral, ops: Ops) -> Mixtral:
    """Return the network that computes a step in one call of the library, if `ops` are those of the library."""
    return NativeMixtral(model, ops) if isinstance(ops, NativeOps) else model


def expert_store_of(model: Mixtral) -> ExpertStore | None:
    """Return the store of a network whose experts are read when they are needed; None if all are in memory."""
    return model.expert_store if isinstance(model, NativeMixtral) else None


class NativeMixtral(Mixtral):
    """Network over NativeOps; each of its matrices may have a format of its own."""

    def __init__(self, model: Mixtral, ops: NativeOps) -> None:
        super().__init__(model.config, model.weights, ops, model.group)
        self._native = ops
        self._joined = ops.in_library(model.group)
        self.expert_store = _experts(model.weights.layers[0]).store
        self._inverse_frequencies = inverse_frequencies(model.config)
        self._pool: weakref.ref[KvPool] | None = None  # the pool whose addresses are in _network
        self._network = NetworkArguments()
        self._steps: WeakKeyDictionary[ForwardBatch, _PreparedStep] = WeakKeyDictionary()

    def forward(self, batch: ForwardBatch, kv_pool: KvPool) -> Tensor:
        """Compute one step, like Mixtral.forward. A step that has the batch of one before overwrites its logits, and
        every step those in `batch.logits`.

        A step with hidden rows runs op by op: the C++ call does not return them, and the bits are the same.
        """
        if batch.hidden is not None:
            return super().forward(batch, kv_pool)
        if self._pool is None or self._pool() is not kv_pool:
            self._network, self._pool = self._arguments(kv_pool), weakref.ref(kv_pool)
        step = self._steps.get(batch)
        if step is None:
            step = self._steps[batch] = self._prepare(batch)
        self._native.forward(self._network, step.arguments, self._joined, self.expert_store)
        return step.logits  # [N, V]

    def _prepare(self, batch: ForwardBatch) -> "_PreparedStep":
        num_rows, num_logits = len(batch.token_ids), len(batch.logit_rows)
        logits = torch.empty(num_logits, self.config.vocab_size) if batch.logits is None else batch.logits
        step = StepArguments(num_rows, *batch.block_tables.shape, num_logits)
        step.token_ids, step.positions = batch.token_ids.data_ptr(), batch.positions.data_ptr()
        step.slots, step.logit_rows = batch.slot_mapping.data_ptr(), batch.logit_rows.data_ptr()
        step.query_start, step.context_len = batch.query_start.data_ptr(), batch.context_len.data_ptr()
        step.block_tables, step.logits = batch.block_tables.data_ptr(), logits.data_ptr()
        routing, allowed = batch.routing, None
        if self.config.num_experts:
            routing = routing or uniform_routing(self.config, num_rows, batch.token_ids.device)
            step.max_k, step.expert_ids = routing.expert_ids.shape[2], routing.expert_ids.data_ptr()
            step.experts_per_token = routing.experts_per_token.data_ptr()
            if routing.masks is not None and routing.mask_rows is not None:
                allowed = routing.masks.transpose(0, 1).index_select(1, routing.mask_rows)  # [L, T, E]
                step.allowed = allowed.data_ptr()
        if batch.finite is not None:
            step.finite = batch.finite.data_ptr()
        if batch.gates is not None:
            step.P, step.gate_rows = len(batch.gates.rows), batch.gates.rows.data_ptr()
            step.gate_logits = batch.gates.logits.data_ptr()
        adapters = self._native.adapter_addresses(batch.adapters)
        step.adapters = None if adapters is None else adapters.data_ptr()
        return _PreparedStep(step, logits, (routing, allowed, adapters))

    def _arguments(self, pool: KvPool) -> NetworkArguments:
        config, weights, cut = self.config, self.weights, self.group.cut
        experts = _experts(weights.layers[0])
        layers = (LayerArguments * len(weights.layers))(
            *(_layer_arguments(layer, k, v) for layer, k, v in zip(weights.layers, pool.k, pool.v, strict=True))
        )
        return NetworkArguments(
            embedding_dtype=EMBEDDING_DTYPES[weights.embedding.dtype],
            query_dtype=DTYPES[weights.query_dtype],
            residual_dtype=DTYPES[weights.norm.dtype],
            kv_dtype=KV_DTYPES[pool.k.dtype],
            eps=config.norm_eps,
            rope_factor=config.rope_factor,
            V=config.vocab_size,
            D=config.dim,
            F=experts.hidden_dim,
            E=experts.num_experts,
            H=config.num_heads // cut.size,
            G=config.num_kv_heads // cut.size,
            K=config.head_dim,
            L=len(layers),
            block_size=pool.block_size,
            window=config.window or 0,
            all_H=config.num_heads,
            first_H=cut.heads(config).start,
            first_V=cut.part(config.vocab_size, PANEL).start,
            first_D=cut.part(config.dim, PANEL).start,
            first_F=cut.part(experts.hidden_dim, PANEL).start,
            group=self._joined and self._joined.handle,
            embedding=weights.embedding.data_ptr(),
            norm=weights.norm.data_ptr(),
            head=weights.head.arguments,
            inverse_frequency=self._inverse_frequencies.data_ptr(),
            layers=layers,
        )


class _PreparedStep(NamedTuple):
    """Arguments of a step, which hold the addresses of its batch's tensors, of the logits and of what is in `owned`."""

    arguments: StepArguments
    logits: Tensor  # [N, V] float32
    owned: tuple[object, ...]


def _experts(layer: LayerWeights) -> NativeExperts:
    experts: NativeExperts = layer.ffn.experts if isinstance(layer.ffn, NativeMoe) else layer.ffn
    return experts


def _layer_arguments(layer: LayerWeights, k_cache: Tensor, v_cache: Tensor) -> LayerArguments:
    experts = _experts(layer)
    return LayerArguments(
        attention_norm=layer.attention_norm.data_ptr(),
        ffn_norm=layer.ffn_norm.data_ptr(),
        qkv=layer.qkv.arguments,
        output=layer.output.arguments,
        num_qkv=len(layer.qkv.matrices),
        gate=layer.ffn.gate.data_ptr() if isinstance(layer.ffn, NativeMoe) else None,
        experts=experts.arguments,
        store=experts.store and experts.store.handle,
        stored_layer=experts.stored_layer,
        k_cache=k_cache.data_ptr(),
        v_cache=v_cache.data_ptr(),
    )
