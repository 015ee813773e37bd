"""
The checks of the exercises: of the model answers, or with --mine of tests/exercises.py. Each
broken property has its sentence. Typical wrong answers show that no check lets them pass.
"""

import inspect
import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

sys.path.append(str(Path(__file__).resolve().parent.parent / 'assets'))
import answers
import exercises
from answers import average, learnable_average
from lesson import block_average, cheats
from wavelet_gpt import causal_haar, kernel_sizes

class Broken(Exception):
    """A property does not hold. The sentence says which."""

def need(holds, sentence):
    if not holds:
        raise Broken(sentence)

def need_close(out, expected, sentence):
    need(torch.is_tensor(out), f'it must return a tensor, and it returns {type(out).__name__}')
    need(out.shape == expected.shape,
         f'the shape must be {tuple(expected.shape)}, and it is {tuple(out.shape)}')
    need(out.dtype == expected.dtype, f'the numbers must be {expected.dtype}, not {out.dtype}')
    need(torch.allclose(out, expected, atol=1e-4), sentence)

def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))

def haar(x, f):
    return causal_haar(x, [f] * x.size(-1))

def moved(mixer, T=16, C=2):
    """Which output steps change, if only by a bit, with input step s: (T, T) of bool."""
    x = random(1, T, C)
    out = mixer(x)
    need(torch.equal(x, random(1, T, C)), 'it writes into its input: make a new tensor')
    need_close(out * 0, x * 0, 'it makes nan or inf of ordinary numbers')
    columns = []
    for s in range(T):
        changed = x.clone()
        changed[:, s] += 1000
        columns.append((mixer(changed) != out).any(dim=2)[0])
    return torch.stack(columns, dim=1)

def need_causal(matrix):
    for t, s in matrix.triu(1).nonzero().tolist():
        raise Broken(f'it looks into the future: output {t} depends on input {s}')

def need_window(matrix, f):
    """Output t must depend on the last f inputs, and on nothing else."""
    need_causal(matrix)
    for t in range(len(matrix)):
        for s in range(t + 1):
            case = f'with f={f} output {t} and input {s}'
            need(matrix[t, s] or t - s >= f, f'the window is too short, as {case} show')
            need(t - s < f or not matrix[t, s], f'what has left the window still counts, if only '
                 f'by round-off, as {case} show')

# --- one check for each exercise, in their order ---

def check_level_2_by_hand(predict):
    answer = [float(number) for number in predict()]
    need(len(answer) == 6, f'six steps go in, and {len(answer)} come out')
    need(answer[:2] == [0, 0], 'it looks into the future: the 4 comes in at t = 2')
    need(max(answer) < 4, 'it is no mean: divide by the number of steps in the window')
    need(all(answer[2:]), 'the window is too short: the 4 is in it at t = 2, 3, 4 and 5')
    need(answer[2:] == [1, 1, 1, 1], 'each step that sees the 4 has 4 / 4, also at t = 2, where '
         'a zero stands before the first step')

def check_kernel_sizes_by_hand(predict):
    answer = [int(f) for f in predict()]
    sizes = kernel_sizes(128, 512)
    need(answer[:2] == [1, 1], 'half of the coordinates are left alone: f(0) = f(63) = 1')
    need(answer[-1] == 512, 'the last coordinate has the longest window that fits: 512')
    need(answer == [sizes[i] for i in (0, 63, 64, 71, 72, 127)],
         '64 = 9 * 7 + 1: level 1 has 8 coordinates, 64 to 71, and each other level 7')

def check_leaky_log(judge):
    run, bits = judge()
    need(run == 'b', 'run a falls as a small model does. The other is too good to be true')
    need(abs(bits - 0.737) > 0.01, 'nats are not bits: a bit is ln 2 nats')
    need(abs(bits - 0.737 / math.log(2)) < 0.05, 'from nats to bits, divide by ln 2')

def check_average(average):
    for f in (2, 4, 1, 8):
        need_window(moved(lambda x: average(x, f)), f)
        out = average(torch.ones(1, 16, 1), f)[0, :, 0]
        need(abs(out[-1] - 1) < 1e-5, f'it is no mean: of ones with f={f} it makes {out[-1]:g}')
        need(abs(out[0] - 1 / f) < 1e-5, 'there are zeros before the first step: of ones with '
             f'f={f} the first output is 1/{f}, not {out[0]:g}')
        for T in (16, 11, 8):
            x = random(2, T, 3)
            need_close(average(x, f), haar(x, f), f'with f={f}, T={T} it is not causal_haar')

def check_details(details):
    x = random(2, 11, 3)
    for K in (1, 3):
        parts = details(x, K)
        need(len(parts) == K + 1, f'x has K + 1 = {K + 1} parts, and not {len(parts)}')
        need_close(sum(parts), x, 'the parts do not add up to x')
        for n in range(K + 1):
            need_causal(moved(lambda x: details(x, K)[n]))
        for j in range(1, K + 1):
            expected = haar(x, 2 ** (j - 1)) - haar(x, 2 ** j)
            need_close(parts[j], expected, f'd_{j} is not a_{j - 1} - a_{j}')

def check_newest_average(newest):
    def at_every_step(x, f):
        return torch.cat([newest(x[:, :t], x[:, t:t + 1], f) for t in range(x.size(1))], dim=1)

    check_average(at_every_step)

def check_average_backward(backward):
    for f in (4, 2, 8, 1):
        matrix = moved(lambda grad: backward(grad, f))
        for s, t in matrix.tril(-1).nonzero().tolist():
            raise Broken(f'the gradient of input {s} depends on that of the earlier output {t}, '
                         f'which input {s} never enters')
        x, grad = random(2, 11, 3).requires_grad_(), random(2, 11, 3).flip(0)
        expected, = torch.autograd.grad(average(x, f), x, grad)
        need_close(backward(grad, f), expected, f'with f={f} it is not what autograd gives: x(s) '
                   'enters f outputs, each with 1/f')

def check_learnable_average(learnable):
    need_window(moved(lambda x: learnable(x, torch.full((2, 4), 1 / 4))), 4)
    for K, T in (4, 16), (1, 16), (8, 5):
        x, kernel = random(2, T, 3).requires_grad_(), random(3, K).requires_grad_()
        out = learnable(x, kernel)
        need_close(out, learnable_average(x, kernel), f'with K={K}, T={T} the weights are not '
                   'taken as they are: kernel[i, K - 1 - j] belongs to x(t - j, i)')
        slopes = torch.autograd.grad(out.sum(), (x, kernel), allow_unused=True)
        for name, slope in zip(('x', 'the kernel'), slopes):
            need(slope is not None, f'no gradient reaches {name}: training could not change it')

def check_reads_the_future(reads):
    torch.manual_seed(0)
    def ahead(x):
        return x.roll(-1, dims=1)

    for T, C in (16, 4), (9, 3):
        last = torch.arange(C) == C - 1
        honest = {
            'causal_haar': lambda x: causal_haar(x, [1, 2, 4, 8][:C]),
            'a triangular matrix': lambda x: torch.ones(T, T).tril() @ x,
            'attention': lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
        }
        hidden = {
            **cheats(T),
            'a look ahead of a hundred-thousandth': lambda x: x + 1e-5 * ahead(x),
            'a look ahead in the last coordinate': lambda x: x + last * ahead(x),
            'a gate that the next step opens': lambda x: x * (ahead(x) > 0),
        }
        for t in range(T - 1):
            here = (torch.arange(T) == t)[:, None]
            hidden[f'a look ahead at step {t} only'] = lambda x, here=here: x + here * ahead(x)
        for name, mixer in honest.items():
            need(not reads(mixer, T, C), f'a false alarm: {name} does not read the future')
        for name, mixer in hidden.items():
            need(reads(mixer, T, C), f'it does not notice {name}')

def check_my_filter(mine):
    for T, C in (1, 2), (2, 2), (16, 2), (8, 1), (40, 9):
        try:
            matrix = moved(mine, T, C)
        except RuntimeError as error:
            raise Broken(f'with T={T} it stops: {error} (generation begins with T=1)')
        need_causal(matrix)
    need(matrix.tril(-1).any(), 'it has no memory: an output depends on its own step alone')
    x = random(2, 16, 3).requires_grad_()
    need(mine(x).requires_grad, 'no gradient reaches x: training could not change it')
    need_close(mine(x)[:1], mine(x[:1]), 'the sequences of a batch mix')
    need_close(mine(x)[:, :9], mine(x[:, :9]), 'it looks into the future: it asks how much follows')

NAMES = [name[6:] for name in list(globals()) if name.startswith('check_')]

@pytest.mark.parametrize('name', NAMES, ids=[f'{n}_{name}' for n, name in enumerate(NAMES, 1)])
def test_exercise(name, request):
    def returning(*words):
        result = getattr(module, name)(*words)
        need(result is not None, 'it returns nothing')
        return result

    module = exercises if request.config.getoption('--mine') else answers
    problem = None
    try:
        globals()['check_' + name](returning)
    except (Broken, NotImplementedError) as error:
        problem = f'exercise {NAMES.index(name) + 1}, {name}: {error}'
    if problem:
        pytest.fail(problem, pytrace=False)  # one sentence, no traceback

# --- what must not pass: the exercise, the mistake, what is said of it ---

def shifted(x, f, direction=1):
    return sum(x.roll(direction * s, dims=1) for s in range(f)) / f

def cumulative(x, f):
    total = x.cumsum(dim=1)
    return (total - F.pad(total, (0, 0, f, -f))) / f

def padded_behind(x, f):
    return F.pad(x, (0, 0, 0, f - 1)).unfold(1, f, 1).mean(dim=-1)

def centred(x, kernel):
    K = kernel.size(1)
    return learnable_average(F.pad(x, (0, 0, 0, K // 2)), kernel)[:, K // 2:]

def changes_from(cuts):
    """A test of causality that changes what follows these cuts, and no others."""
    def reads(mixer, T, C):
        x = torch.randn(1, T, C)
        for t in cuts(T):
            changed = torch.cat((x[:, :t], x[:, t:] + 1), dim=1)
            if not torch.equal(mixer(changed)[:, :t], mixer(x)[:, :t]):
                return True
        return False
    return reads

def slopes_above(limit):
    """A test of causality that looks for slopes larger than the limit."""
    def reads(mixer, T, C):
        slopes = torch.autograd.functional.jacobian(mixer, torch.randn(1, T, C))
        return bool((slopes.abs().sum(dim=(0, 2, 3, 5)).triu(1) > limit).any())
    return reads

WRONG = [
    ('level_2_by_hand', lambda: [1, 1, 1, 1, 0, 0], 'looks into the future'),
    ('level_2_by_hand', lambda: [0, 0, 4, 4, 4, 4], 'no mean'),
    ('level_2_by_hand', lambda: [0, 0, 2, 2, 0, 0], 'too short'),
    ('kernel_sizes_by_hand', lambda: [1, 1, 1, 2, 2, 256], 'longest window'),
    ('kernel_sizes_by_hand', lambda: [1, 1, 2, 4, 4, 512], 'each other level 7'),
    ('kernel_sizes_by_hand', lambda: [2, 2, 2, 2, 4, 512], 'left alone'),
    ('leaky_log', lambda: ('a', 2.184 / math.log(2)), 'too good to be true'),
    ('leaky_log', lambda: ('b', 0.737), 'nats are not bits'),
    ('leaky_log', lambda: ('b', 0.737 * math.log(2)), 'divide by ln 2'),
    ('average', shifted, 'future: output 0 depends on input 15'),
    ('average', padded_behind, 'future: output 0 depends on input 1'),
    ('average', block_average, 'looks into the future'),
    ('average', cumulative, 'left the window.*round-off'),
    ('average', lambda x, f: x.copy_(average(x, f)), 'writes into its input'),
    ('average', lambda x, f: x[:, ::f], 'shape must be'),
    ('average', lambda x, f: average(x.double(), f), 'numbers must be torch.float32'),
    ('average', lambda x, f: average(x, f).numpy(), 'it returns ndarray'),
    ('average', lambda x, f: average(x, f // 2 or 1), 'too short'),
    ('average', lambda x, f: average(x, f) * f, 'no mean'),
    ('average', lambda x, f: average(x, f) / average(x * 0 + 1, f), 'zeros before the first'),
    ('average', lambda x, f: average(x, f) if x.size(1) % f == 0 else x, 'f=2, T=11'),
    ('details', lambda x, K: [average(x, 2 ** j) for j in range(K, -1, -1)], 'not add up'),
    ('details', lambda x, K: [average(x, 2 ** K)], 'K . 1 = 2 parts'),
    ('details', lambda x, K: [x] + [x * 0] * K, 'd_1 is not a_0 - a_1'),
    ('details', lambda x, K: [block_average(x, 2), x - block_average(x, 2)], 'future'),
    ('newest_average', lambda past, x, f: past[:, -f:].sum(1, keepdim=True) / f, 'too short'),
    ('newest_average', lambda past, x, f: (past.sum(1, keepdim=True) + x) / f, 'left'),
    ('newest_average', lambda past, x, f: torch.cat((past, x), 1)[:, -f:].mean(1, True), 'zeros'),
    ('average_backward', average, 'never enters'),
    ('average_backward', lambda grad, f: shifted(grad, f, -1), 'never enters'),
    ('average_backward', lambda grad, f: padded_behind(grad, f) * f, 'not what autograd gives'),
    ('learnable_average', centred, 'looks into the future'),
    ('learnable_average', lambda x, w: learnable_average(x, w.flip(1)), 'as they are'),
    ('learnable_average', lambda x, w: learnable_average(x, w[:1].expand_as(w)), 'as they are'),
    ('learnable_average', lambda x, w: learnable_average(x, w[:, -4:]), 'with K=8, T=5'),
    ('learnable_average', lambda x, w: learnable_average(x, w.detach()), 'reaches the kernel'),
    ('learnable_average', lambda x, w: learnable_average(x.detach(), w), 'reaches x'),
    ('reads_the_future', lambda mixer, T, C: False, 'does not notice block average'),
    ('reads_the_future', lambda mixer, T, C: True, 'false alarm: causal_haar'),
    ('reads_the_future', changes_from(lambda T: [T // 2]), 'does not notice block average'),
    ('reads_the_future', changes_from(lambda T: [T - 1]), 'at step 0 only|a gate'),
    ('reads_the_future', slopes_above(1e-3), 'hundred-thousandth'),
    ('reads_the_future', slopes_above(0), 'a gate'),
    ('my_filter', lambda x: x * 2, 'no memory'),
    ('my_filter', lambda x: shifted(x, 2, -1), 'looks into the future'),
    ('my_filter', lambda x: answers.my_filter(x) / x.size(1), 'asks how much follows'),
    ('my_filter', lambda x: answers.my_filter(x) - x.mean(dim=0) / 2, 'sequences of a batch mix'),
    ('my_filter', lambda x: answers.my_filter(x)[:, 1:], 'shape must be'),
    ('my_filter', lambda x: average(x, 4), 'with T=1 it stops'),
    ('my_filter', lambda x: answers.my_filter(x.detach()), 'no gradient reaches x'),
]

@pytest.mark.parametrize('name, mistake, said', WRONG)
def test_a_typical_mistake_is_refused_by_the_property_that_it_breaks(name, mistake, said):
    with pytest.raises(Broken, match=said):
        globals()['check_' + name](mistake)

def test_every_exercise_has_an_answer_of_the_same_form_and_a_mistake():
    for name in NAMES:
        mine, theirs = (inspect.signature(getattr(m, name)) for m in (exercises, answers))
        assert mine == theirs, f'{name}: leave its arguments as they were, {theirs}'
    assert {name for name, _, _ in WRONG} == set(NAMES)
