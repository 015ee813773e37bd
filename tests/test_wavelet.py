"""The operation: the mapping f(i), the causal averages, and their gradient."""

import math

import pytest
import torch
from torch.func import grad, vmap

from wavelet_gpt import causal_haar, kernel_sizes

def double_loop(x, sizes):
    """The definition, sum by sum, in float64: the mean of the last f(i) steps, zeros before."""
    x = x.double()
    out = torch.zeros_like(x)
    for t in range(x.size(1)):
        for i, f in enumerate(sizes):
            out[:, t, i] = x[:, max(0, t - f + 1):t + 1, i].sum(dim=1) / f
    return out

# --- f(i) ---

def test_the_mapping_has_the_counts_of_the_design():
    sizes = kernel_sizes(128, 512)
    assert sizes == sorted(sizes)
    assert [sizes.count(2 ** level) for level in range(10)] == [64, 8, 7, 7, 7, 7, 7, 7, 7, 7]

@pytest.mark.parametrize('C, T, fraction, low, high', [
    (128, 512, 0.5, 1, None), (5, 7, 0.5, 1, None), (6, 1024, 0.5, 1, None), (16, 64, 0, 1, None),
    (48, 1000, 0.3, 2, 6), (128, 256, 1.0, 3, 3),
    (100, 64, 0.29, 1, None)])  # 0.29 * 100 is 28.999...
def test_the_mapping_is_the_formula_coordinate_by_coordinate(C, T, fraction, low, high):
    top = math.floor(math.log2(T)) if high is None else high
    n = top - low + 1
    first = C - round(fraction * C)
    expected = [1] * first
    for i in range(first, C):
        expected.append(2 ** (low + math.floor((i - first) * n / (C - first))))
    assert kernel_sizes(C, T, fraction, low, high) == expected
    assert max(expected) <= T

@pytest.mark.parametrize('wrong', [
    dict(fraction=1.5), dict(fraction=-0.1), dict(min_level=0), dict(max_level=7),
    dict(min_level=4, max_level=3), dict(block_size=1),
])
def test_a_fraction_or_levels_that_do_not_fit_are_refused(wrong):
    with pytest.raises(ValueError):
        kernel_sizes(**{'n_embd': 16, 'block_size': 64, **wrong})

# --- the averages ---

@pytest.mark.parametrize('T', [1, 2, 3, 7, 8, 31, 64, 100])
@pytest.mark.parametrize('sizes', [
    [1, 1, 2, 4, 8, 16], [16, 1, 4, 4, 2, 64, 2], [1], [128, 128], [2, 1]])
def test_causal_haar_is_the_double_loop_for_any_length_and_order(T, sizes):
    torch.manual_seed(T)
    x = torch.randn(3, T, len(sizes), dtype=torch.double)
    torch.testing.assert_close(causal_haar(x, sizes), double_loop(x, sizes))

def test_level_2_of_a_spike_of_4_is_four_ones():
    x = torch.tensor([0, 0, 4, 0, 0, 0.0])
    assert causal_haar(x[:, None], [4]).flatten().tolist() == [0, 0, 1, 1, 1, 1]

def test_dimensions_before_time_are_a_batch_and_the_input_is_left_as_it_was():
    x = torch.randn(2, 3, 16, 4)
    before = x.clone()
    out = causal_haar(x, [1, 2, 4, 8])
    assert torch.equal(x, before)
    assert torch.equal(out[1, 2], causal_haar(x[1, 2], [1, 2, 4, 8]))

@pytest.mark.parametrize('change', [1.0, 1e6, -1e30, math.inf, math.nan])
def test_a_changed_future_leaves_earlier_outputs_bitwise_equal(change):
    torch.manual_seed(0)
    x = torch.randn(2, 200, 32)
    sizes = kernel_sizes(32, 200)
    for t in (1, 63, 64, 199):
        changed = x.clone()
        changed[:, t:] += change
        before, after = causal_haar(x, sizes), causal_haar(changed, sizes)
        assert torch.equal(after[:, :t], before[:, :t])
        assert (after[:, t] != before[:, t]).all()

@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_a_spike_that_has_left_the_window_leaves_exactly_nothing(dtype):
    x = torch.zeros(1, 300, 32, dtype=dtype)
    x[:, 10] = 1e6
    sizes = kernel_sizes(32, 128)
    out = causal_haar(x, sizes)[0]
    for i, f in enumerate(sizes):
        assert out[:, i].nonzero().flatten().tolist() == list(range(10, 10 + f))

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_types_lose_no_more_than_one_rounding(dtype):
    torch.manual_seed(0)
    x = 300 * (torch.randn(2, 256, 32) + 1).to(dtype)  # a sum of 256 is no float16
    sizes = kernel_sizes(32, 256)
    out = causal_haar(x, sizes)
    exact = double_loop(x, sizes)
    assert out.dtype == dtype
    allowed = exact.abs() * torch.finfo(dtype).eps / 2 + 1e-3
    assert ((out.double() - exact).abs() <= allowed).all()

@pytest.mark.parametrize('sizes', [[1, 3], [0, 1], [1, -2], [1], [1, 2, 4]])
def test_sizes_that_are_no_powers_of_two_or_not_one_a_coordinate_are_refused(sizes):
    with pytest.raises(ValueError):
        causal_haar(torch.ones(1, 4, 2), sizes)

@pytest.mark.parametrize('level', [1, 2, 3, 4])
def test_it_is_pywavelets_stationary_transform_rolled_to_look_back(level):
    pywt = pytest.importorskip('pywt')
    torch.manual_seed(0)
    x = torch.randn(64, dtype=torch.double)
    # swt is circular and looks ahead: its first steps, once rolled, wrap around
    [[ahead, _]] = pywt.swt(x.numpy(), 'haar', level=level, norm=True)[:1]
    lag = 2 ** level - 1
    out = causal_haar(x[:, None], [2 ** level]).flatten()
    torch.testing.assert_close(torch.tensor(ahead).roll(lag)[lag:], out[lag:])

# --- its gradient, and what PyTorch does with functions ---

@pytest.mark.parametrize('sizes', [[1, 2, 4, 8], [8, 1, 2, 1]])
def test_first_and_second_derivatives_agree_with_finite_differences(sizes):
    x = torch.randn(2, 6, 4, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: causal_haar(x, sizes), x)
    assert torch.autograd.gradgradcheck(lambda x: causal_haar(x, sizes).sin(), x)

@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_nothing_is_kept_for_the_backward(dtype):
    x = torch.randn(2, 64, 16).to(dtype).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda kept: kept):
        causal_haar(x * 1, kernel_sizes(16, 64)).sum().backward()
    assert kept == [] and x.grad is not None

def test_vmap_is_a_loop_over_examples_also_for_gradients():
    x = torch.randn(3, 2, 16, 8)
    sizes = kernel_sizes(8, 16)

    def energy(x):
        return causal_haar(x, sizes).square().sum()

    assert torch.equal(vmap(lambda x: causal_haar(x, sizes))(x), causal_haar(x, sizes))
    one_by_one = torch.stack([grad(energy)(example) for example in x])
    torch.testing.assert_close(vmap(grad(energy))(x), one_by_one)

@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_torch_compile_gives_the_same_values_and_gradients(dtype):
    sizes = kernel_sizes(8, 16)
    x = torch.randn(2, 16, 8).to(dtype)
    torch.compiler.reset()
    compiled = torch.compile(causal_haar, backend='aot_eager', fullgraph=True)
    results = []
    for function in (causal_haar, compiled):
        leaf = x.clone().requires_grad_()
        out = function(leaf, sizes)
        out.square().sum().backward()
        results.append((out, leaf.grad))
    torch.testing.assert_close(*results)

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_cuda_gives_what_the_cpu_gives(dtype):
    x = torch.randn(4, 512, 128).to(dtype)
    sizes = kernel_sizes(128, 512)
    torch.testing.assert_close(causal_haar(x.cuda(), sizes).cpu(), causal_haar(x, sizes))
