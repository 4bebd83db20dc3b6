"""Cases for the ahead-of-time compiler: every kernel of the library, with each tiling and each option.

tools/kernel_resources.py compiles the cases without a GPU. They follow the launches of :mod:`.attention` and
:mod:`.pooling`; a new row of :data:`.attention_tilings.TILINGS` makes cases by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import triton

from ...hierarchy import Hierarchy
from ..pooling_tables import Pyramid
from . import attention_kernels as kernels
from . import pooling, pooling_kernels
from .attention_tilings import KERNELS, TILINGS, Tiling, padded

#: Which cases are compiled when.
Tier = Literal["plain", "usual", "all"]


class Case(NamedTuple):
    """A kernel to compile.

    Attributes:
        name: the kernel, then what tells the case from others.
        kernel: the function.
        types: of the runtime arguments, as a signature has them: ``"*bf16"``, ``"i32"``.
        constants: the other arguments, which it is compiled for.
        warps: warps per program.
        stages: loads in flight.
        tensor_cores: its products of matrices belong on the tensor cores.
        tier: ``"plain"`` for the tilings, which every architecture is checked for; ``"usual"`` for what adds to them,
            where one architecture tells enough; ``"all"`` for the rest.
    """

    name: str
    kernel: triton.JITFunction
    types: dict[str, str]
    constants: dict[str, Any]
    warps: int
    stages: int
    tensor_cores: bool = False
    tier: Tier = "plain"


#: Arguments in the dtype of the queries, unless a case says otherwise.
_DATA = {"Q", "K", "V", "FAR_K", "FAR_V", "OUT", "GRAD_OUT", "GRAD_Q", "GRAD_K", "GRAD_V"}

#: All others, except for sizes and strides, which are integers.
_TYPES = {
    **dict.fromkeys(("ROWS", "FIRST", "PARTNERS", "BITS", "CARRY_ROWS", "MEMBERS", "ENTRIES"), "*i32"),
    **dict.fromkeys(("BIAS", "LSE", "DELTA", "GRAD_LSE", "PARTIAL_K", "PARTIAL_V"), "*fp32"),
    **dict.fromkeys(("CARRY", "CARRY_LSE", "GRAD_CARRY", "GRAD_CARRY_LSE"), "*fp32"),
    **dict.fromkeys(("scale", "dropout_p"), "fp32"),
    "SEED": "*i64",
}

_FUNCTIONS = {
    "forward": kernels.attend_forward,
    "masked_forward": kernels.attend_forward,
    "queries": kernels.attend_backward_queries,
    "keys": kernels.attend_backward_keys,
    "far_keys": kernels.attend_backward_keys,
}

#: Several cells per item, such as those of summaries.
_BITS = dict(HAS_BITS=True)

#: FMA-linear: level 0 and the levels above, whose queries are summaries and whose results are float32.
_LINEAR = dict(HAS_FAR=False, HAS_CARRY=True)
_SUMMARIES = dict(OUT="*fp32", GRAD_OUT="*fp32")

#: Cells of the pooling kernels: those that the models use, and one with more summaries than a program holds, as (axes,
#: cell size, rank, windows).
_CELLS = (
    (1, 64, 4, False), (1, 64, 4, True), (1, 64, 1, False), (1, 64, 16, False), (2, 7, 1, False), (2, 8, 1, False),
    (2, 8, 2, False), (3, 4, 1, False), (3, 4, 2, False),
)  # fmt: skip

#: Of these, the "usual" ones: the cells that sequences and images have most.
_USUAL_CELLS = ("1D r64 p4 bf16", "2D r8 p2 bf16")

#: By option: the kernels that it makes a difference to, changed constants and changed types.
_OPTIONS: list[tuple[str, tuple[str, ...], dict[str, Any], dict[str, str]]] = [
    ("bits", ("forward", "queries", "keys"), _BITS, {}),
    ("no bits", ("far_keys",), dict(HAS_BITS=False), {}),
    ("causal", ("queries", "keys"), dict(CAUSAL=True), {}),
    ("dropout", ("masked_forward", "queries", "keys", "far_keys"), dict(HAS_DROPOUT=True), {}),
    ("near", ("forward", "queries"), dict(HAS_FAR=False), {}),
    ("linear", ("forward", "queries"), _LINEAR, {}),
    ("linear, level 1", ("forward", "queries", "keys"), _LINEAR | _BITS, _SUMMARIES),
]


def cases() -> Iterator[Case]:
    """All kernels of the library.

    Those of the attention are there for each tiling and precision, with its largest head dimension, and with options
    for one of them.
    """
    for (size, dim), tilings in TILINGS.items():
        for name, dtype, precision in _precisions(size, dim):
            for kernel, tiling in zip(KERNELS, tilings, strict=True):
                case = _attention(f"{kernel} {name} d{dim}", kernel, tiling, dtype, dim, precision)
                # float16 and bfloat16 differ in the types of the instructions alone
                yield case._replace(tier="all") if name == "fp16" else case
    for option, of_kernels, constants, types in _OPTIONS:
        for kernel in of_kernels:
            tiling, name = TILINGS[2, 64][KERNELS.index(kernel)], f"{kernel} bf16 d64, {option}"
            case = _attention(name, kernel, tiling, "bf16", 64, "ieee", constants, types)
            yield case._replace(tier="usual")
    small = dict(DIM=128, WIDTH=16, BLOCK_DIM=128)
    for kernel in (kernels.sum_partials, kernels.attend_backward_carry):
        yield Case(f"{kernel.__name__} bf16 d128", kernel, _types(kernel, "bf16", small), small, warps=2, stages=3)
    yield from pooling_cases()


def _precisions(size: int, dim: int) -> list[tuple[str, str, str]]:
    """Name, dtype and precision of the products that share a tiling."""
    if size == 4:
        return [("fp32", "fp32", "ieee"), ("tf32", "fp32", "tf32")]
    both = [("bf16", "bf16", "ieee"), ("fp16", "fp16", "ieee")]
    return both if dim == 64 else both[:1]


def _attention(
    name: str,
    kernel: str,
    tiling: Tiling,
    dtype: str,
    dim: int,
    precision: str,
    constants: dict[str, Any] | None = None,
    types: dict[str, str] | None = None,
) -> Case:
    """One of KERNELS, reading near tokens and far summaries, unless constants and types say otherwise."""
    function, partial = _FUNCTIONS[kernel], kernel == "far_keys"
    compiled_for = dict(
        DIM=dim, BLOCK_OWN=tiling.own, BLOCK=tiling.block, BLOCK_DIM=padded(dim),
        HAS_FAR=True, HAS_BITS=False, HAS_CARRY=False, HAS_DROPOUT=False, CAUSAL=False, PRECISION=precision,
        PARTIAL=partial,
    )  # fmt: skip
    if kernel == "masked_forward":
        compiled_for["CAUSAL"] = constants is None
    if partial:
        compiled_for |= _BITS
        types = dict(GRAD_K="*fp32", GRAD_V="*fp32")
    compiled_for |= constants or {}
    compiled_for = {argument: value for argument, value in compiled_for.items() if argument in function.arg_names}
    all_types = _types(function, dtype, compiled_for) | {
        argument: kind for argument, kind in (types or {}).items() if argument in function.arg_names
    }
    return Case(name, function, all_types, compiled_for, tiling.warps, tiling.stages, tensor_cores=dtype != "fp32")


def _types(kernel: triton.JITFunction, dtype: str, constants: dict[str, Any]) -> dict[str, str]:
    runtime = (argument for argument in kernel.arg_names if argument not in constants)
    return {argument: f"*{dtype}" if argument in _DATA else _TYPES.get(argument, "i32") for argument in runtime}


def pooling_cases() -> Iterator[Case]:
    """Every pooling kernel that is launched, for each of the cells."""
    for ndim, cell_size, rank, windows in _CELLS:
        pyramid = Pyramid(Hierarchy((cell_size,) * ndim, cell_size, rank, causal=windows), windows)
        for dtype in ("bf16", "fp32"):  # other head dimensions have the same tiles
            name = f"{ndim}D r{cell_size} p{rank}{' windows' if windows else ''} {dtype}"
            yield from _pooling(name, pyramid, dtype, dim=64)


def _pooling(name: str, pyramid: Pyramid, dtype: str, dim: int) -> Iterator[Case]:
    cfg = pooling.config(dim, pyramid.summaries, pyramid.fanout)
    leaves = cfg.tops * pyramid.fanout ** (cfg.levels - 1)
    constants = dict(pooling.kernel_constants(pyramid, dim, cfg, shared=False), VECTOR=4)
    block = dict(constants, FANOUT=pyramid.fanout, LEVELS=cfg.levels, LEAVES=leaves)
    missing = dict(SCALE=None) if pyramid.windows else {}
    above = pyramid.fanout * pyramid.summaries

    def case(kind: str, kernel: triton.JITFunction, constants: dict[str, Any], **types: str) -> Case:
        types = {arg: types.get(arg, "i32") for arg in kernel.arg_names if arg not in constants}
        tier: Tier = "usual" if name.endswith(_USUAL_CELLS) else "all"
        return Case(f"{kind} {name}", kernel, types, constants, pooling.WARPS, pooling.STAGES, tier=tier)

    tables = dict.fromkeys(("INPUT_ROWS", "ROWS", "CELLS", "PARENTS", "BOUNDS"), "*i32")
    floats = dict.fromkeys(("WEIGHT", "UPPER", "SCALE", "SUMS", "GRAD_SUMS", "GRAD_WEIGHT"), "*fp32")
    tokens = dict(X=f"*{dtype}", OUT=f"*{dtype}", GRAD=f"*{dtype}", GRAD_X=f"*{dtype}", MASK="*u8", **tables, **floats)
    sums = dict(tokens, X="*fp32")
    kernel, more = pooling_kernels.pool, dict(block, **missing, ALL_SUMS=True)
    yield case("pool tokens", kernel, dict(more, INPUTS=pyramid.taps), **tokens)
    yield case("pool summaries", kernel, dict(more, INPUTS=above, MASK=None), **sums)
    yield case("spread gradients", pooling_kernels.spread_gradients, dict(block, **missing), **tokens)
    kernel = pooling_kernels.input_gradients
    size = dict(INPUTS=pyramid.taps, BLOCK=pooling.input_block(pyramid.taps, cfg.part))
    yield case("gradients of tokens", kernel, dict(constants, **size, ADD=True), **tokens)
    size = dict(INPUTS=above, BLOCK=pooling.input_block(above, cfg.part))
    yield case("gradients of summaries", kernel, dict(constants, **size, MASK=None, GRAD_X=None, ADD=False), **sums)
