"""Attention of packed rows by cuDNN, which on Hopper takes some 70 % of FlashAttention 2's time.

PyTorch has it too, but plans anew at each call, which takes 40 ms (pytorch/pytorch#191576); here NVIDIA's
cudnn-frontend plans, and `cudnn_plans.py` keeps the plans. The layout is the one that its documentation calls
ragged: rows lie one after the other, offsets say where.

A gradient has to lie as its tensor does: cuDNN 9.19 reads one list of offsets for both, whatever it is given.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from train.batches import Packed
from train.fused import reference_ops
from train.fused.reference_ops import Heads

# The tensors of a graph, and the offsets at which rows begin in tensors of such a width.
Q, K, V, OUT, LSE, GRADIENT, OF_Q, OF_K, OF_V, LENGTHS, IN_QUERIES, IN_KEYS, IN_OUT, IN_SUMS = range(1, 15)
ROWS_OF = {Q: IN_QUERIES, OF_Q: IN_QUERIES, OUT: IN_OUT, GRADIENT: IN_OUT, LSE: IN_SUMS}
ROWS_OF |= dict.fromkeys((K, V, OF_K, OF_V), IN_KEYS)


class Plan:
    """Attention of at most `rows` rows of at most `longest` tokens, at most `tokens` in all.

    If `exact`, gradients are summed up in the same order each time.
    """

    def __init__(self, heads: Heads, rows: int, longest: int, tokens: int, exact: bool, handle: Any) -> None:
        self.heads, self.rows, self.longest, self.tokens = heads, rows, longest, tokens
        self.exact, self.handle = exact, handle
        together = (heads.query + 2 * heads.key) * heads.head
        # Of keys that share queries, cuDNN keeps gradients as wide as their rows for each query: hence apart.
        self.apart = heads.key < heads.query
        keys = heads.key * heads.head if self.apart else together
        self.widths = {IN_QUERIES: together, IN_KEYS: keys, IN_OUT: heads.query * heads.head}
        self.widths[IN_SUMS] = heads.query
        self._forward, self._backward = self._graph(backward=False), self._graph(backward=True)
        self._starts = torch.empty(0)
        self._places: dict[int, torch.Tensor] = {}  # offsets and lengths of the rows that begin there

    def forward(self, qkv: torch.Tensor, starts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the heads' results (T, query, head), and the log sums (T, query), fp32.

        `starts` (rows + 1, int32) are a batch's `cu_seq_lens`.
        """
        out = qkv.new_empty(len(qkv), self.heads.query, self.heads.head)
        lse = torch.empty(out.shape[:2], dtype=torch.float32, device=qkv.device)
        self._run(self._forward, self._inputs(qkv, starts) | {OUT: out, LSE: lse})
        return out, lse

    def backward(
        self,
        gradient: torch.Tensor,
        qkv: torch.Tensor,
        out: torch.Tensor,
        lse: torch.Tensor,
        starts: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """The gradients of queries, keys and values (T, heads, head) from that of `out`."""
        made = self.heads.split(torch.empty_like(qkv))
        if self.apart:
            made = made[0], *(qkv.new_empty(part.shape) for part in made[1:])
        given = {OUT: out, LSE: lse, GRADIENT: gradient}
        outputs = dict(zip((OF_Q, OF_K, OF_V), made, strict=True))
        self._run(self._backward, self._inputs(qkv, starts) | given | outputs)
        return made

    def _inputs(self, qkv: torch.Tensor, starts: torch.Tensor) -> dict[int, torch.Tensor]:
        if self._starts is not starts:
            all_rows = torch.cat([starts, starts[-1:].expand(self.rows + 1 - len(starts))])  # rows of nothing
            offsets = {name: all_rows.to(torch.int64) * width for name, width in self.widths.items()}
            self._starts, self._places = starts, offsets | {LENGTHS: all_rows.diff()}
        return dict(zip((Q, K, V), self._parts(qkv), strict=True)) | self._places

    def _parts(self, qkv: torch.Tensor) -> tuple[torch.Tensor, ...]:
        queries, *others = self.heads.split(qkv)
        return queries, *((part.contiguous() for part in others) if self.apart else others)

    def _run(self, graph: Any, tensors: dict[int, torch.Tensor]) -> None:
        import cudnn

        device = tensors[Q].device
        workspace = torch.empty(graph.get_workspace_size(), dtype=torch.uint8, device=device)
        cudnn.set_stream(handle=self.handle, stream=torch.cuda.current_stream(device).cuda_stream)
        graph.execute(tensors, workspace, handle=self.handle)

    def _layout(self, name: int) -> dict[str, list[int]]:
        count = self.heads.key if name in (K, V, OF_K, OF_V) else self.heads.query
        head, row = 1 if name == LSE else self.heads.head, self.widths[ROWS_OF[name]]
        return {
            "dim": [self.rows, count, self.longest, head],
            "stride": [self.longest * row, head, row, 1],
        }

    def _graph(self, backward: bool) -> Any:
        import cudnn

        types = cudnn.data_type
        graph = cudnn.pygraph(
            io_data_type=types.BFLOAT16,
            intermediate_data_type=types.FLOAT,
            compute_data_type=types.FLOAT,
            handle=self.handle,
        )

        def list_of(count: int, dtype: Any, name: int) -> Any:
            return graph.tensor(dim=[count, 1, 1, 1], stride=[1, 1, 1, 1], data_type=dtype, uid=name)

        offsets = {name: list_of(self.rows + 1, types.INT64, name) for name in self.widths}

        def given(name: int) -> Any:
            dtype = types.FLOAT if name == LSE else types.BFLOAT16
            at = offsets[ROWS_OF[name]]
            return graph.tensor(**self._layout(name), data_type=dtype, ragged_offset=at, uid=name)

        lengths = list_of(self.rows, types.INT32, LENGTHS)
        arguments = {"q": given(Q), "k": given(K), "v": given(V), "attn_scale": self.heads.scale}
        arguments |= {"use_padding_mask": True, "seq_len_q": lengths, "seq_len_kv": lengths}
        arguments |= {"diagonal_band_right_bound": 0}  # causal
        if backward:
            arguments |= {"o": given(OUT), "dO": given(GRADIENT), "stats": given(LSE)}
            arguments |= {"max_total_seq_len_q": self.tokens, "max_total_seq_len_kv": self.tokens}
            arguments |= {"use_deterministic_algorithm": self.exact}
            outputs = zip(graph.sdpa_backward(**arguments), (OF_Q, OF_K, OF_V), strict=True)
        else:
            outputs = zip(graph.sdpa(**arguments, generate_stats=True), (OUT, LSE), strict=True)
        for tensor, name in outputs:
            layout = self._layout(name)
            tensor.set_output(True).set_uid(name).set_dim(layout["dim"]).set_stride(layout["stride"])
            tensor.set_data_type(types.FLOAT if name == LSE else types.BFLOAT16)
            tensor.set_ragged_offset(offsets[ROWS_OF[name]])
        graph.build([cudnn.heur_mode.A])
        return graph


HOPPER = 9  # compute capability's first number; not tried on others
ROWS, LONGEST, TOKENS = 8, 128, 1024  # the least that a plan is made for
NEAR = 2e-2  # relative error in bf16; right ones have some 3e-3


def plan_for(qkv: torch.Tensor, heads: Heads, batch: Packed) -> Plan | None:
    """The plan for this batch, or None where FlashAttention has to do it."""
    if qkv.dtype != torch.bfloat16 or heads.head % 16:  # of other heads cuDNN's gradients aren't right
        return None
    if heads.window is not None and heads.window < batch.max_length:
        return None
    if not is_there(qkv.device) or not _is_right(heads, qkv.device):
        return None
    rows = max(ROWS, power_of_two(len(batch.cu_seq_lens) - 1))
    longest = max(LONGEST, power_of_two(batch.max_length))
    step = max(TOKENS, power_of_two(len(qkv)) // 8)
    exact = torch.are_deterministic_algorithms_enabled()
    return _plan(heads, rows, longest, -len(qkv) % step + len(qkv), exact, qkv.device)


@cache
def is_there(device: torch.device) -> bool:
    """Whether the device is a GPU for it, and the frontend is installed."""
    if device.type != "cuda" or not find_spec("cudnn"):
        return False
    return torch.cuda.get_device_capability(device)[0] == HOPPER


@cache
def _is_right(heads: Heads, device: torch.device) -> bool:
    """Whether this release of cuDNN computes what it should; tried once, with small rows."""
    plan = _plan(heads, ROWS, LONGEST, TOKENS, torch.are_deterministic_algorithms_enabled(), device)
    right = plan is not None and agrees(plan, heads, device)
    if not right:
        warnings.warn("cuDNN can't do this model's attention here; FlashAttention 2 does it", stacklevel=1)
    return right


@cache
def _plan(
    heads: Heads, rows: int, longest: int, tokens: int, exact: bool, device: torch.device
) -> Plan | None:
    try:
        import cudnn
    except (ImportError, OSError, AssertionError):  # it wants one libcudnn, and finds it when it's imported
        return None
    try:
        return Plan(heads, rows, longest, tokens, exact, _handle(device))
    except (cudnn.cudnnGraphNotSupportedError, RuntimeError, ValueError):  # whichever way cuDNN refuses
        return None


@cache
def _handle(device: torch.device) -> Any:
    import cudnn

    with torch.cuda.device(device):
        return cudnn.create_handle()


def agrees(plan: Plan, heads: Heads, device: torch.device) -> bool:
    """Whether a plan's results and gradients for two small rows are PyTorch's in fp32."""
    starts = torch.tensor([0, 100, 103], dtype=torch.int32, device=device)
    drawn = torch.Generator(device).manual_seed(0)

    def some(count: int) -> torch.Tensor:
        return torch.randn(103, count, heads.head, generator=drawn, device=device).to(torch.bfloat16)

    qkv, gradient = some(heads.query + 2 * heads.key).flatten(1), some(heads.query)
    out, lse = plan.forward(qkv, starts)
    found = [out, *plan.backward(gradient, qkv, out, lse, starts)]
    exact, whole = heads.split(qkv.float()), replace(heads, window=None)
    with sdpa_kernel(SDPBackend.MATH):  # the others have no gradients that are the same each time
        wanted = reference_ops.attend(exact, whole, starts)
        gradients = reference_ops.attend_backward(gradient.float(), exact, whole, starts)
    pairs = zip(found, (wanted, *gradients), strict=True)
    return all(bool((a - b).norm() <= NEAR * b.norm()) for a, b in pairs)  # NaN isn't


def power_of_two(count: int) -> int:
    """The next that isn't less."""
    return 1 << (count - 1).bit_length()
