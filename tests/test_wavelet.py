"""The operation: the mapping f(i), the causal averages, their gradient."""

import math
import weakref

import pytest
import torch
from torch.func import grad, vmap

from wavelet_gpt import causal_haar, haar_shifts, kernel_sizes


def double_loop(x, kernel_size):
    """The definition, sum by sum, in float64: x_n(t, i) = 1/f(i) sum of x(m, i), m = t - f(i) + 1 .. t, zeros before."""
    x = x.double()
    out = torch.zeros_like(x)
    for t in range(x.size(1)):
        for i, f in enumerate(kernel_size.tolist()):
            out[:, t, i] = x[:, max(0, t - f + 1):t + 1, i].sum(dim=1) / f
    return out


# --- f(i)


def test_the_mapping_has_the_counts_of_the_design():
    f = kernel_sizes(128, 512)
    assert f.dtype == torch.long and f.shape == (128,)
    values, counts = f.unique(return_counts=True)
    assert dict(zip(values.tolist(), counts.tolist())) == {1: 64, 2: 8, **{2 ** level: 7 for level in range(2, 10)}}


@pytest.mark.parametrize('C, T, fraction, low, high', [(128, 512, 0.5, 1, None), (32, 256, 0.5, 1, None), (5, 7, 0.5, 1, None),
                                                       (48, 1000, 0.3, 2, 6), (128, 256, 1.0, 3, 3), (6, 1024, 0.5, 1, None),
                                                       (100, 64, 0.29, 1, None)])  # 0.29 * 100 is 28.999...
def test_the_mapping_is_the_formula_coordinate_by_coordinate(C, T, fraction, low, high):
    top = int(math.log2(T)) if high is None else high
    first = C - round(fraction * C)
    expected = [1 if i < first else 2 ** (low + math.floor((i - first) * (top - low + 1) / (C - first))) for i in range(C)]
    assert kernel_sizes(C, T, fraction, low, high).tolist() == expected
    assert max(expected) <= T


@pytest.mark.parametrize('C, T, fraction, low, high', [(128, 512, 0.5, 1, None), (128, 256, 0.5, 1, 3), (1_000_000, 2 ** 25, 1.0, 1, None),
                                                       (7, 8, 0.9, 2, 3), (96, 64, 1.0, 1, None)])
def test_halving_gives_half_of_what_is_left_to_each_longer_window(C, T, fraction, low, high):
    f = kernel_sizes(C, T, fraction, low, high, halving=True)
    left = round(fraction * C)
    expected, level = [1] * (C - left), low
    while left:
        n = left if level == (high or int(math.log2(T))) else (left + 1) // 2  # the longest window gets the rest
        expected, left, level = expected + [2 ** level] * n, left - n, level + 1
    assert f.tolist() == expected


def test_fraction_zero_leaves_every_coordinate_alone():
    assert kernel_sizes(16, 64, fraction=0).tolist() == [1] * 16


@pytest.mark.parametrize('arguments, named', [(dict(fraction=1.5), '1.5'), (dict(min_level=0), '0..6'), (dict(max_level=7), '1..7'),
                                              (dict(min_level=4, max_level=3), '4..3'), (dict(block_size=1), 'block_size=1'),
                                              (dict(fraction=-0.1), '-0.1')])
def test_levels_that_do_not_fit_are_refused_by_name(arguments, named):
    with pytest.raises(ValueError, match=named.replace('.', r'\.')):
        kernel_sizes(**{**dict(n_embd=16, block_size=64), **arguments})


# --- the averages


@pytest.mark.parametrize('T', [1, 2, 3, 7, 8, 31, 64, 100])
@pytest.mark.parametrize('sizes', [[1, 1, 2, 4, 8, 16], [16, 1, 4, 2, 64, 2], [1], [128, 128], [1, 1, 1], [2, 1]])
def test_causal_haar_is_the_double_loop_for_any_length_and_order(T, sizes):
    torch.manual_seed(T)
    x, k = torch.randn(3, T, len(sizes), dtype=torch.double), torch.tensor(sizes)
    torch.testing.assert_close(causal_haar(x, k), double_loop(x, k), rtol=1e-12, atol=1e-12)


def test_level_2_of_a_spike_of_4_is_four_ones():
    x = torch.tensor([0., 0, 4, 0, 0, 0]).view(1, 6, 1)
    assert causal_haar(x, torch.tensor([4])).flatten().tolist() == [0, 0, 1, 1, 1, 1]


def test_the_input_is_left_as_it_was():
    x = torch.randn(2, 16, 4)
    before = x.clone()
    causal_haar(x, torch.tensor([1, 2, 4, 8]))
    assert torch.equal(x, before)


@pytest.mark.parametrize('change', [1.0, 1e6, -1e30])
def test_a_changed_future_leaves_earlier_outputs_bitwise_equal(change):
    torch.manual_seed(0)
    x, k = torch.randn(2, 200, 32), kernel_sizes(32, 200)
    for t in (1, 63, 64, 199):
        y = x.clone()
        y[:, t:] += change
        assert torch.equal(causal_haar(x, k)[:, :t], causal_haar(y, k)[:, :t])
        assert not torch.equal(causal_haar(x, k)[:, t:], causal_haar(y, k)[:, t:])


@pytest.mark.parametrize('poison', [math.inf, math.nan])
def test_not_even_infinity_in_the_future_is_noticed(poison):
    x, k = torch.randn(1, 64, 16), kernel_sizes(16, 64)
    y = x.clone()
    y[:, 40:] = poison
    assert torch.equal(causal_haar(x, k)[:, :40], causal_haar(y, k)[:, :40])


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_a_spike_that_has_left_the_window_leaves_exactly_nothing(dtype):
    k = kernel_sizes(32, 128)
    x = torch.zeros(1, 300, 32, dtype=dtype)
    x[:, 10] = 1e6
    y = causal_haar(x, k)
    for i, f in enumerate(k.tolist()):
        assert (y[0, 10:10 + f, i] != 0).all() and (y[0, 10 + f:, i] == 0).all() and (y[0, :10, i] == 0).all()


def test_shifting_the_input_by_one_shifts_the_output_by_one():
    x, k = torch.randn(2, 50, 16), kernel_sizes(16, 32)
    shifted = torch.cat((torch.zeros(2, 1, 16), x), dim=1)
    assert torch.equal(causal_haar(shifted, k)[:, 1:], causal_haar(x, k))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_loses_no_more_than_its_own_rounding(dtype):
    torch.manual_seed(0)
    x, k = (torch.randn(2, 256, 32) + 1).to(dtype), kernel_sizes(32, 256)
    y, exact = causal_haar(x, k), double_loop(x, k)
    assert y.dtype == dtype
    error = (y.double() - exact).abs()
    # rounding the exact value once costs up to half a unit in the last place; the sums in float32 add a hair to that
    assert (error <= exact.abs() * torch.finfo(dtype).eps / 2 + 1e-6).all()


def test_every_float_type_comes_back_as_itself():
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        assert causal_haar(torch.ones(1, 4, 2, dtype=dtype), torch.tensor([1, 2])).dtype == dtype


@pytest.mark.parametrize('x, sizes, named', [(torch.ones(1, 4, 2), [1, 3], '3'), (torch.ones(1, 4, 2), [0, 1], '0'),
                                             (torch.ones(1, 4, 2), [1], r'\(1,\)'), (torch.ones(1, 4, 2).long(), [1, 2], 'int64'),
                                             (torch.ones(2), [1, 2], r'need x \(B, T, C\)')])
def test_what_cannot_be_averaged_is_refused_by_name(x, sizes, named):
    with pytest.raises(ValueError, match=named):
        causal_haar(x, torch.tensor(sizes))


def test_shapes_and_types_are_checked_also_where_the_shifts_are_given():
    with pytest.raises(ValueError, match='int64'):
        causal_haar(torch.ones(1, 4, 2).long(), torch.tensor([1, 2]), ((1, 1),))
    with pytest.raises(ValueError, match=r'\(2,\)'):
        causal_haar(torch.ones(1, 4, 1), torch.tensor([1, 2]), ((1, 1),))
    with pytest.raises(ValueError, match='kernel_size torch.float32'):
        causal_haar(torch.ones(1, 4, 2), torch.tensor([1.0, math.inf]))


@pytest.mark.parametrize('shape', [(0, 4, 2), (1, 0, 2), (1, 4, 0)])
def test_nothing_averages_to_nothing(shape):
    assert causal_haar(torch.ones(shape), torch.ones(shape[2]).long() * 2).shape == shape


def test_it_is_pywavelets_stationary_transform_rolled_to_look_back():
    pywt = pytest.importorskip('pywt')
    torch.manual_seed(0)
    x = torch.randn(64, dtype=torch.double)
    for level in (1, 2, 3, 4):
        ahead = torch.tensor(pywt.swt(x.numpy(), 'haar', level=level, norm=True)[0][0])  # circular, and looks ahead
        lag = 2 ** level - 1
        past = causal_haar(x.view(1, 64, 1), torch.tensor([2 ** level])).flatten()
        torch.testing.assert_close(ahead.roll(lag)[lag:], past[lag:])


# --- its gradient, and what PyTorch does with functions


@pytest.mark.parametrize('sizes', [[1, 2, 4, 8], [8, 1, 2, 1]])
def test_first_and_second_derivatives_agree_with_finite_differences(sizes):
    k = torch.tensor(sizes)
    x = torch.randn(2, 6, 4, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: causal_haar(x, k), x)
    assert torch.autograd.gradgradcheck(lambda x: causal_haar(x, k).sin(), x)


def test_the_backward_keeps_no_activation():
    x = torch.randn(2, 64, 16, requires_grad=True)
    kept, given = [], x * 1
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t), lambda t: t):
        y = causal_haar(given, kernel_sizes(16, 64))
    given = weakref.ref(given)
    assert kept == [] and given() is None and y.requires_grad  # neither by save_for_backward nor in any other way


def test_vmap_is_a_loop_over_examples_also_for_gradients():
    x, k = torch.randn(3, 2, 16, 8), kernel_sizes(8, 16)
    torch.testing.assert_close(vmap(lambda x: causal_haar(x, k))(x), torch.stack([causal_haar(x, k) for x in x]))

    def energy(x):
        return causal_haar(x, k).square().sum()
    torch.testing.assert_close(vmap(grad(energy))(x), torch.stack([grad(energy)(x) for x in x]))


def test_autocast_changes_nothing():
    x, k = torch.randn(2, 64, 16), kernel_sizes(16, 64)
    expected = causal_haar(x, k)
    with torch.autocast('cpu', torch.bfloat16):
        averaged = causal_haar(x, k, haar_shifts(k.tolist()))
    assert averaged.dtype == torch.float32 and torch.equal(averaged, expected)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_torch_compile_gives_the_same_values_and_gradients(dtype):
    k = kernel_sizes(8, 16)
    shifts = haar_shifts(k.tolist())
    torch.compiler.reset()
    compiled = torch.compile(lambda x: causal_haar(x, k, shifts), backend='aot_eager', fullgraph=True)
    x = torch.randn(2, 16, 8).to(dtype)
    results = []
    for function in (compiled, lambda x: causal_haar(x, k)):
        leaf = x.clone().requires_grad_()
        y = function(leaf)
        y.square().sum().backward()
        results.append((y, leaf.grad))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_cuda_gives_what_the_cpu_gives(dtype):
    x, k = torch.randn(4, 512, 128).to(dtype), kernel_sizes(128, 512)
    torch.testing.assert_close(causal_haar(x.cuda(), k.cuda()).cpu(), causal_haar(x, k))
