"""Compile a GPU's kernels when the engine loads: all variants at once, in threads, before the first step needs one."""

from collections.abc import Callable
from pathlib import Path

from engine.capacity.machine.host_resources import num_cores
from engine.capacity.sizing import DEFAULT_GPU_BUDGET, served_kv_dtype
from engine.config import EngineConfig
from engine.errors import EngineConfigError
from engine.startup.probe import triton_cache
from model.dummy_weights import without_numbers
from model.kv_format import KvDtype
from model.kv_pool import KvPool
from model.mixtral import Mixtral
from model.mixtral_cuda_graphs import EagerRecorder, GraphedMixtral
from model.profile_step import run_profile_steps

NUM_LAYERS = 2  # layers launch the same variants; slices of odd layers may be aligned differently


def compile_kernels(
    config: EngineConfig,
    model: Mixtral,
    kv_dtype: KvDtype,
    num_rows: int,
    on_compiled: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Compile what the largest steps (of `num_rows` rows) and the decode steps of a Triton model launch.

    The steps run on a network without numbers, so nothing is computed. Calls on_compiled(done, total). Raises
    EngineConfigError that names the kernel which does not compile, or the directory that cannot be written.
    """
    from model.ops.triton.kernel_variants import KernelCompilationError, VariantRecorder, compile_variants
    from model.ops.triton.ops import TritonOps

    assert isinstance(model.ops, TritonOps)
    recorder = VariantRecorder(model.ops.launcher_options)
    try:
        launch_steps(config, without_numbers(model, model.ops.launched_by(recorder), NUM_LAYERS), kv_dtype, num_rows)
        compile_variants(recorder.variants.values(), config.threads or num_cores(), on_compiled)
    except KernelCompilationError as error:
        raise EngineConfigError(
            f"--backend triton: {error}; --backend reference needs no kernels, but is slow"
        ) from error
    except OSError as error:  # Triton writes when it first looks for the GPU's driver
        raise EngineConfigError(f"--backend triton: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    """Return what failed, and what helps if it is Triton's cache or a directory above it."""
    if not isinstance(error.filename, str):
        return str(error)
    path, cache = Path(error.filename), triton_cache()
    is_in_cache = cache is not None and (path.is_relative_to(cache) or cache.is_relative_to(path))
    remedy = "; TRITON_CACHE_DIR names another directory" if is_in_cache else ""
    return f"{path}: {error.strerror}{remedy}"


def compile_for_rank(config: EngineConfig, model: Mixtral, backend: str, on_compiled: Callable[[], None]) -> None:
    """Compile what a rank, which is not the first, launches. Raises EngineConfigError."""
    if backend != "triton":
        return
    kv_dtype = served_kv_dtype(config, model.config)
    num_rows = min(config.max_num_batched_tokens or DEFAULT_GPU_BUDGET, model.config.context_len)
    compile_kernels(config, model, kv_dtype, num_rows, lambda done, total: on_compiled())


def launch_steps(config: EngineConfig, model: Mixtral, kv_dtype: KvDtype, num_rows: int) -> None:
    """Launch the largest steps, and a decode step of every bucket of rows."""
    device = model.weights.embedding.device
    run_profile_steps(model, num_rows, config.max_num_seqs, config.block_size, kv_dtype)
    pool = KvPool(model.group.cut.with_own_heads(model.config), 2, config.block_size, kv_dtype, device)
    table_width = -(-(config.max_model_len or model.config.context_len) // config.block_size)
    GraphedMixtral(model, pool, EagerRecorder(), config.max_num_seqs, table_width).capture_all()
