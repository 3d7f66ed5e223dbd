"""Multiply-adds of single operations, by the shapes of their operands in a traced graph.

A handle maps the inputs and outputs of a traced operation to its counts. Products count one multiply-add for each
term of each sum, four where the numbers are complex. "elementwise" counts the elements that an operation reads or
writes, whichever are more. An operation without a handle, or with arguments that its handle does not cover, is named
"uncounted".
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from itertools import chain
from typing import Any

Handle = Callable[[list[Any], list[Any]], Counter[str]]
UNCOUNTED = "uncounted "  # before the name of an operation


def _aten(names: str) -> tuple[str, ...]:
    """PyTorch's own operations of these names, also in place ("mul_")."""
    return tuple(f"aten::{name}{place}" for name in names.split() for place in ("", "_"))


# Operations of one result for each element, reductions, scans, sorts, norms and pools.
ELEMENTWISE = _aten("""
abs absolute acos acosh add addcdiv addcmul amax amin aminmax angle any all arccos arccosh arcsin arcsinh arctan
arctan2 arctanh argmax argmin argsort asin asinh atan atan2 atanh bernoulli bitwise_and bitwise_left_shift bitwise_not
bitwise_or bitwise_right_shift bitwise_xor bucketize ceil celu clamp clamp_max clamp_min clip complex conj_physical
copysign cos cosh cosine_similarity count_nonzero cummax cummin cumprod cumsum deg2rad diff digamma dist div divide elu
eq equal erf erfc erfinv exp exp2 expm1 exponential fix float_power floor fmax fmin fmod frac frexp gcd ge gelu glu
greater greater_equal gt hardshrink hardsigmoid hardswish hardtanh heaviside hypot i0 igamma igammac isclose isfinite
isinf isnan isneginf isposinf kthvalue lcm ldexp le leaky_relu lerp less less_equal lgamma log log10 log1p log2
log_sigmoid log_softmax logaddexp logaddexp2 logcumsumexp logical_and logical_not logical_or logical_xor logit
logsumexp lt masked_fill masked_scatter max maximum mean median min minimum mish mode mul multiply mvlgamma nan_to_num
nanmean nanmedian nansum ne neg negative nextafter norm not_equal polar polygamma positive pow prelu prod rad2deg
reciprocal relu relu6 remainder renorm round rrelu rsqrt rsub searchsorted selu sgn sigmoid sign signbit silu sin sinc
sinh softmax softplus softshrink sort sqrt square std std_mean sub subtract sum tan tanh threshold topk trapezoid
true_divide trunc var var_mean where xlogy zeta
__and__ __or__ __xor__ __lshift__ __rshift__ __iand__ __ior__ __ixor__ floor_divide
special_entr special_erf special_erfc special_erfcx special_erfinv special_exp2 special_expit special_expm1
special_gammainc special_gammaincc special_gammaln special_i0 special_i0e special_i1 special_i1e special_log1p
special_log_ndtr special_log_softmax special_logit special_logsumexp special_ndtr special_ndtri special_round
special_sinc special_softmax special_xlog1py special_xlogy special_zeta
linalg_norm linalg_vector_norm frobenius_norm nuclear_norm
batch_norm group_norm instance_norm layer_norm rms_norm native_layer_norm native_group_norm native_batch_norm
_fused_rms_norm local_response_norm
avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices
max_pool3d_with_indices adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
adaptive_max_pool2d adaptive_max_pool3d
upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d
scatter_add scatter_reduce index_add index_reduce embedding_bag cross_entropy_loss mse_loss l1_loss smooth_l1_loss
huber_loss nll_loss kl_div binary_cross_entropy binary_cross_entropy_with_logits
""")

# Operations that create, move or select data and compute nothing; dropout is off while counting.
FREE = _aten("""
Bool Float Int IntImplicit ScalarImplicit FloatImplicit ComplexImplicit size numel dim item is_floating_point len
_assert_async _shape_as_tensor
alias as_strided adjoint atleast_1d atleast_2d atleast_3d broadcast_tensors broadcast_to chunk conj contiguous data
dequantize detach diagonal expand expand_as flatten hsplit vsplit dsplit imag real matrix_H mT mH moveaxis movedim
narrow numpy_T permute ravel requires_grad_ reshape reshape_as resolve_conj resolve_neg select slice split
split_with_sizes squeeze swapaxes swapdims t tensor_split transpose unbind unflatten unfold unsafe_chunk unsafe_split
unsafe_split_with_sizes unsqueeze view view_as view_as_complex view_as_real lift lift_fresh lift_fresh_copy
block_diag cat clone column_stack concat concatenate constant_pad_nd copy diag diag_embed dstack flip fliplr flipud
gather hstack im2col index index_copy index_fill index_put index_select masked_select meshgrid one_hot embedding pad
pixel_shuffle pixel_unshuffle channel_shuffle reflection_pad1d reflection_pad2d reflection_pad3d repeat
repeat_interleave replication_pad1d replication_pad2d replication_pad3d roll rot90 scatter select_scatter
slice_scatter diagonal_scatter stack take take_along_dim tile to type_as tril triu vstack nonzero nonzero_numpy
upsample_nearest1d upsample_nearest2d upsample_nearest3d cartesian_prod combinations
arange bartlett_window blackman_window empty empty_like empty_strided eye fft_fftfreq fft_rfftfreq fft_fftshift
fft_ifftshift fill full full_like hamming_window hann_window kaiser_window linspace logspace new_empty new_full
new_ones new_zeros ones ones_like scalar_tensor tensor tril_indices triu_indices vander zero zeros zeros_like
normal rand rand_like randint randint_like randn randn_like randperm uniform
alpha_dropout dropout feature_alpha_dropout feature_dropout native_dropout
_pack_padded_sequence _pad_packed_sequence
""")


@cache
def handles() -> dict[str, Handle]:
    """A handle for the name of every operation that is covered."""
    found: dict[str, Handle] = {}
    for names, handle in ((FREE, _nothing), (ELEMENTWISE, _elements)):
        found |= dict.fromkeys(names, handle)
    found |= {name: handle for names, handle in PRODUCTS.items() for name in names}
    # what a scripted module repeats or chooses is not part of the traced graph
    found |= {f"prim::{name}": _unknown for name in ("If", "Loop", "CallMethod")}
    return {name: partial(_covered, name, handle) for name, handle in found.items()}


def _covered(name: str, handle: Handle, inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """The counts of `handle`, or the operation by its name where the handle does not cover its arguments."""
    try:
        return handle(inputs, outputs)
    except (ArithmeticError, LookupError, TypeError, ValueError, RuntimeError):
        return Counter({UNCOUNTED + name: 1})


def _nothing(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    return Counter()


def _unknown(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    raise ValueError


# --- shapes and arguments -----------------------------------------------------------------------


def is_tensor(value: Any) -> bool:
    return bool(value.type().kind() == "TensorType")


def shape(value: Any) -> list[int]:
    """The sizes of a tensor. Raises ValueError for one whose sizes the trace does not hold."""
    sizes = value.type().sizes() if is_tensor(value) else None
    if sizes is None:
        raise ValueError("not a tensor of known sizes")
    return list(sizes)


def tensors(values: list[Any]) -> list[Any]:
    """The tensors among arguments or results, those in lists included."""
    lists = (value for value in values if value.node().kind() == "prim::ListConstruct")
    return [value for value in chain(values, *(value.node().inputs() for value in lists)) if is_tensor(value)]


def constant(value: Any) -> Any:
    """The value of an argument that is no tensor. Raises ValueError for one that the trace does not hold."""
    node = value.node()
    kind, inputs = node.kind(), list(node.inputs())
    if kind == "prim::Constant":
        return value.toIValue()
    if kind == "prim::ListConstruct":
        return [constant(part) for part in inputs]
    if kind == "aten::size":
        return shape(inputs[0])[constant(inputs[1])]
    if kind in ("aten::Int", "aten::ScalarImplicit", "prim::NumToTensor"):
        return constant(inputs[0])
    if kind in ARITHMETIC:  # on sizes, which a trace holds as tensors
        return ARITHMETIC[kind](*map(constant, inputs[:2]))
    raise ValueError(f"{kind} is not constant")


ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "aten::add": operator.add,
    "aten::sub": operator.sub,
    "aten::mul": operator.mul,
    "aten::floor_divide": operator.floordiv,
}


def _product(name: str, result: Any, terms: int) -> Counter[str]:
    """Count the multiply-adds of a result; each of its elements is a sum of `terms` products."""
    return Counter({name: math.prod(shape(result)) * terms * _real_products(result)})


def _real_products(value: Any) -> int:
    """Multiplications of real numbers in one of the value's: 4 of complex ones."""
    return 4 if "Complex" in str(value.type().scalarType()) else 1


# --- handles ------------------------------------------------------------------------------------


def _elements(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    if not shape(outputs[0]) and "Long" in str(outputs[0].type().scalarType()):
        return Counter()  # arithmetic on sizes
    return Counter(elementwise=max(math.prod(shape(value)) for value in tensors([*inputs, *outputs])))


def _matmul(inputs: list[Any], outputs: list[Any], first: int = 0, name: str = "matmul") -> Counter[str]:
    """Of two operands, the first of which is input number `first`: matrices, vectors and batches that broadcast."""
    return _product(name, outputs[0], shape(inputs[first])[-1])


def _addbmm(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """The sum over a batch of products."""
    batch, _, terms = shape(inputs[1])
    return _product("matmul", outputs[0], batch * terms)


def _outer(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    return _product("matmul", outputs[0], 1)


def _linear(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    return _product("linear", outputs[0], shape(inputs[1])[-1])


def _tensordot(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """a and b, summed over the dimensions of a that the third argument lists."""
    sizes = shape(inputs[0])
    return _product("matmul", outputs[0], math.prod(sizes[dim] for dim in constant(inputs[2])))


def _convolution(inputs: list[Any], outputs: list[Any], transposed: bool | None = None) -> Counter[str]:
    """Weights (out, in / groups, *kernel), applied at every output; transposed (in, out / groups, *kernel), at every
    input. Products with zeros in the padding count.
    """
    if transposed is None:
        transposed = constant(inputs[6])
    return _product("conv", inputs[0] if transposed else outputs[0], math.prod(shape(inputs[1])[1:]))


def _attention(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """q (..., N, d) with k and v (..., M, d): N M d for the scores and N M d for the mix, masked or not."""
    d, (m, d_v) = shape(inputs[0])[-1], shape(inputs[2])[-2:]
    return Counter(attention=math.prod(shape(outputs[0])) // d_v * m * (d + d_v))


def _recurrence(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Every matrix of weights is applied once to every token; weights are the last list of tensors."""
    lists = [list(value.node().inputs()) for value in inputs if value.node().kind() == "prim::ListConstruct"]
    weights = [math.prod(sizes) for sizes in map(shape, lists[-1]) if len(sizes) == 2]
    return Counter(recurrence=math.prod(shape(inputs[0])[:-1]) * sum(weights))


def _cell(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """One step of a recurrence: x, state, weights of x, weights of the state."""
    return Counter(recurrence=math.prod(shape(inputs[0])[:-1]) * sum(math.prod(shape(w)) for w in inputs[2:4]))


def _fft(inputs: list[Any], outputs: list[Any], real: bool, dims: int | None) -> Counter[str]:
    """5/2 N log2 N for a complex transform of N elements, half of it for a real one: the usual count of a radix-2 FFT,
    two operations a multiply-add. `dims`: how many dimensions are transformed if the third argument does not say.
    """
    sizes, lengths, along = shape(outputs[0]), constant(inputs[1]), constant(inputs[2])
    if along is None:
        along = list(range(-(dims or len(sizes)), 0))
    along, lengths = ([given] if isinstance(given, int) else given for given in (along, lengths))
    if real and "Complex" in str(outputs[0].type().scalarType()):  # of half the spectrum: the signal itself is longer
        sizes = shape(inputs[0])
        for dim, n in zip(along, lengths or (), strict=lengths is not None):
            sizes[dim] = n
    n = math.prod(sizes[dim] for dim in along)
    return Counter(fft=round(math.prod(sizes) * (1.25 if real else 2.5) * math.log2(n)))


def _einsum(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Pair by pair, in the order that torch.einsum takes: the product of all sizes of the pair that are not summed yet.

    A dimension that one operand alone has, and no later one asks for, is summed before the product.
    """
    operands = list(inputs[1].node().inputs())
    terms, kept = _einsum_dims(constant(inputs[0]).replace(" ", ""), [shape(operand) for operand in operands])
    path = constant(inputs[2]) if len(inputs) > 2 else None
    path = path or [0, 1] * (len(terms) - 1)  # torch puts each result behind the other operands
    total = 0
    for i, j in zip(path[::2], path[1::2], strict=True):
        a, b = terms[i], terms[j]
        terms = [term for n, term in enumerate(terms) if n not in (i, j)]
        later = kept.union(*terms)
        pair = {dim: n for one, other in ((a, b), (b, a)) for dim, n in one.items() if dim in other or dim in later}
        total += math.prod(pair.values())
        terms.append({dim: n for dim, n in pair.items() if dim in later})
    return Counter(einsum=total * _real_products(outputs[0]))


def _einsum_dims(equation: str, shapes: list[list[int]]) -> tuple[list[dict[str | int, int]], set[str | int]]:
    """For each operand, its dimensions (letters; those of "..." numbered from the right) and their sizes, but for those
    of size 1, which only broadcast; and the dimensions of the result.
    """
    left, arrow, right = equation.partition("->")
    terms = []
    for subscripts, sizes in zip(left.split(","), shapes, strict=True):
        before, dots, after = subscripts.partition("...")
        dims = [*before, *range(len(before) + len(after) - len(sizes) if dots else 0, 0), *after]
        terms.append({dim: n for dim, n in zip(dims, sizes, strict=True) if n != 1})
    unnamed = {dim for term in terms for dim in term if isinstance(dim, int)}
    letters = left.replace(".", "").replace(",", "")
    named = set(right.replace(".", "")) if arrow else {letter for letter in letters if letters.count(letter) == 1}
    return terms, named | (unnamed if not arrow or "..." in right else set())


def _diffuse(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """x (B, *grid, D), weights (E, .), steps: (E + 1) D a token and sub-step."""
    edges, steps = shape(inputs[2])[0], constant(inputs[4])
    return Counter(diffuse=math.prod(shape(inputs[0])) * (edges + 1) * steps)


PRODUCTS: dict[tuple[str, ...], Handle] = {
    _aten("matmul mm bmm mv dot vdot inner linalg_matmul"): _matmul,
    _aten("addmm addmv baddbmm"): partial(_matmul, first=1),
    _aten("addbmm"): _addbmm,
    _aten("outer ger addr kron"): _outer,
    _aten("linear"): _linear,
    _aten("tensordot"): _tensordot,
    _aten("einsum"): _einsum,
    _aten("_convolution convolution"): _convolution,
    _aten("conv1d conv2d conv3d _convolution_mode"): partial(_convolution, transposed=False),
    _aten("conv_transpose1d conv_transpose2d conv_transpose3d"): partial(_convolution, transposed=True),
    _aten("scaled_dot_product_attention"): _attention,
    _aten("lstm gru rnn_tanh rnn_relu"): _recurrence,
    _aten("lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"): _cell,
    _aten("fft_fft fft_ifft"): partial(_fft, real=False, dims=1),
    _aten("fft_rfft fft_irfft fft_hfft fft_ihfft"): partial(_fft, real=True, dims=1),
    _aten("fft_fft2 fft_ifft2"): partial(_fft, real=False, dims=2),
    _aten("fft_rfft2 fft_irfft2"): partial(_fft, real=True, dims=2),
    _aten("fft_fftn fft_ifftn"): partial(_fft, real=False, dims=None),
    _aten("fft_rfftn fft_irfftn"): partial(_fft, real=True, dims=None),
    ("ldn::diffuse",): _diffuse,
}
