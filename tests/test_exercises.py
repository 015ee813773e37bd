"""
The checks of the exercises: of the model answers, or with --mine of tests/exercises.py. Each broken property has its
sentence, and typical wrong answers show that no check lets them pass.
"""

import inspect
import math
import traceback

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import answers
import exercises
from answers import average
from wavelet_gpt import block_average, causal_haar, cheats, kernel_sizes


class Broken(Exception):
    """A property does not hold: the sentence says which."""


def need(holds, sentence):
    if not holds:
        raise Broken(sentence)


def need_shape(out, x):
    need(isinstance(out, torch.Tensor), f'it must return a tensor, and it returns {type(out).__name__}')
    need(out.shape == x.shape, f'the shape must stay {tuple(x.shape)}, and is {tuple(out.shape)}')
    need(out.dtype == x.dtype, f'the numbers must stay {x.dtype}, and are {out.dtype}: end with .to(x.dtype)')
    need(out.isfinite().all(), 'it makes nan or inf of ordinary numbers')


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def moved(mixer, T=16, C=2):
    """Which output steps of mixer change, by however little, when input step s is changed: (T, T) of bool."""
    x = random(1, T, C)
    out = mixer(x)
    need(torch.equal(x, random(1, T, C)), 'it writes into its input: make a new tensor')
    need_shape(out, x)
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
    """Output t must depend on the inputs t - f + 1 .. t and on nothing else."""
    need_causal(matrix)
    for t, s in matrix.nonzero().tolist():
        need(t - s < f, f'with f={f} output {t} still depends on input {s}, which has left the window of {f} steps '
             '(if only by round-off: a sum must not hold what it then takes away)')
    for t in range(len(matrix)):
        for s in range(max(0, t - f + 1), t + 1):
            need(matrix[t, s], f'the window is too short: with f={f} output {t} does not depend on input {s}')


def haar(x, f):
    return causal_haar(x, torch.full((x.size(-1),), f))


def need_close(out, expected, sentence):
    need(torch.allclose(out, expected, atol=1e-4), sentence)


# --- one check for each exercise, in their order


def check_level_2_by_hand(predict):
    answer = [float(number) for number in predict()]
    need(len(answer) == 6, f'six steps go in, and {len(answer)} come out')
    need(answer[:2] == [0, 0], 'it looks into the future: something comes out before the 4 came in at t = 2')
    need(answer != [0, 0, 4, 0, 0, 0], 'nothing is averaged')
    need(max(answer) < 4, 'it is a sum, and no mean: divide by the number of steps in the window')
    need(all(answer[2:]), 'the window is too short: level 2 averages 4 steps, so the 4 is seen at t = 2, 3, 4 and 5')
    need(answer == [0, 0, 1, 1, 1, 1], 'it is not what causal_haar gives: each step that sees the 4 has 4 / 4, at t = 2 too, where a '
         'zero stands before the first step')


def check_kernel_sizes_by_hand(predict):
    answer = [int(f) for f in predict()]
    need(len(answer) == 6, f'f is asked for at six coordinates, and {len(answer)} numbers come back')
    need(answer[:2] == [1, 1], 'half of the coordinates are left alone: f(0) = f(63) = 1')
    need(all(f & (f - 1) == 0 for f in answer), 'every f(i) is a power of two')
    need(answer[-1] == 512, 'the last coordinate has the longest window that fits, 512 of T = 512')
    need(answer[2] == 2, 'the levels begin at 1: the first averaged coordinate has f = 2')
    need(answer == kernel_sizes(128, 512)[[0, 63, 64, 71, 72, 127]].tolist(),
         '64 = 9 * 7 + 1: level 1 has 8 coordinates, i = 64 .. 71, and each other level 7')


def check_leaky_log(judge):
    answer = judge()
    need(isinstance(answer, (tuple, list)) and len(answer) == 2 and answer[0] in ('a', 'b'),
         "it must return two things, as in ('a', 1.23): the letter of the run, and its last val_loss in bits")
    run, bits = answer
    need(run == 'b', 'run a falls as a small model does after so few steps: it is the other that is too good to be true')
    need(abs(bits - 0.737) > 0.01, 'nats are not bits: a bit is ln 2 nats')
    need(abs(bits - 0.737 * math.log(2)) > 0.01, 'the loss is 0.737 nats: divide by ln 2, do not multiply')
    need(abs(bits - 0.737 / math.log(2)) < 0.05, f'the last val_loss of run b is 0.737 nats, and that is not {bits:.3g} bits')


def check_average(average):
    for f in (2, 4, 1, 8):
        need_window(moved(lambda x: average(x, f)), f)
        ones = torch.ones(1, 16, 1)
        out = average(ones, f)[0, :, 0]
        need(abs(out[-1] - 1) < 1e-5, f'it is no mean: of nothing but ones with f={f} it makes {out[-1]:g}')
        need(abs(out[0] - 1 / f) < 1e-5, f'there are zeros before the first step: of ones with f={f} the first output is '
             f'1/{f}, and not {out[0]:g}')
        for T in (16, 11, 8):
            x = random(2, T, 3)
            out = average(x, f)
            need_shape(out, x)
            need_close(out, haar(x, f), f'with f={f} and T={T} it is not causal_haar')


def check_details(details):
    x = random(2, 11, 3)
    for K in (1, 3):
        parts = details(x, K)
        need(isinstance(parts, (list, tuple, torch.Tensor)), f'it must return a list, and it returns {type(parts).__name__}')
        need(len(parts) == K + 1, f'x has K + 1 = {K + 1} parts, and not {len(parts)}')
        for part in parts:
            need_shape(part, x)
        need_close(sum(parts), x, 'the parts do not add up to x: a_K and the differences must cancel to a_0')
        for n in range(K + 1):
            need_causal(moved(lambda x: details(x, K)[n]))
        need_close(parts[0], haar(x, 2 ** K), f'the first part is not a_K, the average over 2^K = {2 ** K} steps')
        for j in range(1, K + 1):
            need_close(parts[j], haar(x, 2 ** (j - 1)) - haar(x, 2 ** j), f'd_{j} is not a_{j - 1} - a_{j}')


def check_newest_average(newest):
    x = random(2, 12, 3)
    for f in (4, 8, 1):
        for n in range(11, -1, -1):
            past, last = x[:, :n], x[:, n:n + 1]
            out = newest(past, last, f)
            need(torch.equal(x, random(2, 12, 3)), 'it writes into its input: make a new tensor')
            need_shape(out, last)
            need(not torch.equal(out, newest(past, last + 1, f)), 'it forgets the newest step: only the past is averaged')
            for s in range(n):
                changed = past.clone()
                changed[:, s] += 1000
                depends = not torch.equal(newest(changed, last, f), out)
                need(depends or n - s >= f, f'after {n} steps with f={f} it does not depend on step {s}, which is in the window')
                need(not depends or n - s < f, f'after {n} steps with f={f} it depends on step {s}, which has left the window')
            need_close(out * f, torch.cat((past, last), dim=1)[:, -f:].sum(1, keepdim=True),
                       f'after {n} steps with f={f} it is not the last output of the average: what is missing are zeros, '
                       'and the sum is divided by f')


def check_average_backward(backward):
    for f in (4, 2, 8, 1):
        matrix = moved(lambda grad: backward(grad, f))
        for s, t in matrix.tril(-1).nonzero().tolist():
            raise Broken(f'the gradient of input {s} depends on that of output {t}, an earlier one, '
                         f'which input {s} never enters')
        for s, t in matrix.nonzero().tolist():
            need(t - s < f, f'with f={f} the gradient of input {s} depends on that of output {t}, too late for {s} '
                 '(if only by round-off: a sum must not hold what it then takes away)')
        x, grad = random(2, 11, 3).requires_grad_(), random(2, 11, 3).flip(0)
        expected, = torch.autograd.grad(average(x, f), x, grad)
        out = backward(grad, f)
        need_shape(out, grad)
        need_close(out, expected,
                   f'with f={f} it is not what autograd gives: x(s) enters f outputs, each with 1/f')


def check_learnable_average(learnable):
    K, x = 4, random(2, 16, 3)
    haar_kernel = torch.full((2, K), 1 / K)
    need_window(moved(lambda x: learnable(x, haar_kernel)), K)
    newest = torch.zeros(3, K)
    newest[:, -1] = 1
    need_close(learnable(x, newest), x, 'the kernel is turned around: its last weight belongs to the newest step')
    need_close(learnable(x, torch.full((3, K), 1 / K)), haar(x, K), 'with 1/K everywhere it is not the average over K')
    kernel = random(3, K).requires_grad_()
    alone = torch.cat([learnable(x[..., i:i + 1], kernel[i:i + 1]) for i in range(3)], dim=2)
    out = learnable(x, kernel)
    need_close(out, alone, 'the coordinates share a kernel: each has its own')
    slope = torch.autograd.grad(out.square().sum(), kernel, allow_unused=True)[0] if out.requires_grad else None
    need(slope is not None and slope.abs().min() > 0, 'no gradient reaches the kernel: training could not change it')
    need_close(out, answers.learnable_average(x, random(3, K)),
               'the weights are not taken as they are, kernel[i, K - 1 - j] for x(t - j, i): in another order, or changed')
    for K, T in (3, 16), (1, 16), (8, 5):
        kernel, x = random(3, K), random(2, T, 3).requires_grad_()
        out = learnable(x, kernel)
        need_shape(out, x)
        need_close(out, answers.learnable_average(x, kernel), f'with K={K} and T={T} it is not the weighted sum')
    need(out.requires_grad, 'no gradient reaches x: training could not change what comes before')


def hidden_cheats(T):
    """Those that are drawn, and small ones that hide: name -> mixer."""
    def last_coordinate(x):
        return torch.cat((x[..., :-1], x[..., -1:].roll(-1, dims=1)), dim=2)

    def one_step(t):  # only output t is moved by the input after it
        return lambda x: torch.cat((x[:, :t], x[:, t:t + 1] + x[:, t + 1:t + 2], x[:, t + 1:]), dim=1)
    return {**cheats(T), 'an average of pairs': lambda x: block_average(x, 2),
            'an average of two halves': lambda x: block_average(x, T // 2),
            'a look ahead of a hundred-thousandth': lambda x: x + 1e-5 * x.roll(-1, dims=1),
            'a look ahead in the last coordinate only': last_coordinate,
            'a look ahead at the first step only': one_step(0),
            **{f'a look ahead at step {t} only': one_step(t) for t in range(1, T - 1)},
            'a look ahead by three steps': lambda x: x + x.roll(-3, dims=1),
            'a look ahead at another coordinate': lambda x: x + x.roll((-1, 1), dims=(1, 2)),
            'a look ahead at a difference of two others': lambda x: x + (x.roll(1, dims=2) - x.roll(2, dims=2)).roll(-1, dims=1),
            'a gate that the next step opens, without a slope': lambda x: x * (x.roll(-1, dims=1) > 0),
            'a division by the largest of all steps': lambda x: x / x.abs().amax(dim=1, keepdim=True)}


def check_reads_the_future(reads):
    for T, C in (16, 4), (9, 3):
        f = torch.tensor([1, 2, 4, 8])[:C]
        for name, mixer in {'causal_haar': lambda x: causal_haar(x, f), 'a cumulative sum': lambda x: x.cumsum(dim=1),
                            'x itself': lambda x: x, 'a largest value so far': lambda x: x.cummax(dim=1).values,
                            'a triangular matrix': lambda x: torch.ones(T, T).tril() @ x,
                            'causal attention': lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True)}.items():
            need(not reads(mixer, T, C), f'a false alarm: {name} does not read the future')
        for name, mixer in hidden_cheats(T).items():
            need(reads(mixer, T, C), f'it does not notice {name}')


def check_my_filter(mine):
    for T in 1, 2:
        try:
            mine(random(1, T, 2))
        except RuntimeError as error:
            raise Broken(f'with T={T}, as generation begins, it stops: {error} (F.pad(x, (0, 0, s, 0))[:, :T] moves by any s)')
    for T, C in (16, 2), (8, 1), (40, 9):
        matrix = moved(mine, T, C)
        need_causal(matrix)
        need(C == 1 or matrix.tril(-1).any(), 'it has no memory: every output depends on its own step alone')
    x = random(2, 16, 3)
    need(mine(x.requires_grad_()).requires_grad, 'no gradient reaches x: training could not change what comes before')
    need_close(mine(x)[:1], mine(x[:1]), 'the sequences of a batch mix: alone, the first one gives another output')
    need_close(mine(x)[:, :9], mine(x[:, :9]), 'it looks into the future: steps come out otherwise if more follow')


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
        raised = traceback.extract_tb(error.__traceback__)[-1].name
        name = raised if raised in NAMES else name  # one that is still open may be called by another
        problem = f'exercise {NAMES.index(name) + 1}, {name}: {error}'
    if problem:
        pytest.fail(problem, pytrace=False)  # one sentence, no traceback; a student's other errors keep theirs


# --- what must not pass: name of the exercise, the mistake, what is said of it


def cumulative(x, f):
    total = x.cumsum(dim=1)
    return (total - F.pad(total, (0, 0, f, -f))) / f


def of_those_that_exist(x, f):
    return average(x, f) / average(torch.ones_like(x), f)


def centred(x, kernel):
    C, K = kernel.shape
    return F.conv1d(F.pad(x.transpose(1, 2), (K // 2, K - 1 - K // 2)), kernel[:, None], groups=C).transpose(1, 2)


def in_place(x, f):
    x.copy_(average(x, f))
    return x


def moves_the_end_only(mixer, T, C):
    x = torch.randn(1, T, C)
    changed = x.clone()
    changed[:, -1] += 1
    return not torch.equal(mixer(changed)[:, :-1], mixer(x)[:, :-1])


def cuts_in_the_middle(mixer, T, C):
    x = torch.randn(1, T, C)
    changed = x.clone()
    changed[:, T // 2:] += 1
    return not torch.equal(mixer(changed)[:, :T // 2], mixer(x)[:, :T // 2])


def tolerates(mixer, T, C):
    x = torch.randn(1, T, C)
    jacobian = torch.autograd.functional.jacobian(mixer, x)[0, :, :, 0].sum(dim=(1, 3))
    return not torch.allclose(jacobian.triu(1), torch.zeros(T, T), atol=1e-3)


def compares_neighbours(mixer, T, C):
    x = torch.randn(1, T, C)
    out = mixer(x)
    for t in range(T - 1):
        changed = x.clone()
        changed[:, t + 1] += 1
        if not torch.equal(mixer(changed)[:, t], out[:, t]):
            return True
    return False


def asks_for_slopes(mixer, T, C):
    slopes = torch.autograd.functional.jacobian(mixer, torch.randn(1, T, C))[0, :, :, 0].abs().sum(dim=(1, 3))  # (T, T)
    return bool((slopes.triu(1) > 0).any())


def dyes_with_nan(mixer, T, C):
    for t in range(1, T):
        x = torch.randn(1, T, C)
        x[:, t:] = math.nan
        if mixer(x)[:, :t].isnan().any():
            return True
    return False


WRONG = [
    ('level_2_by_hand', lambda: [1, 1, 1, 1, 0, 0], 'looks into the future'),
    ('level_2_by_hand', lambda: [0, 0, 4, 4, 4, 4], 'no mean'),
    ('level_2_by_hand', lambda: [0, 0, 2, 2, 0, 0], 'too short'),
    ('kernel_sizes_by_hand', lambda: [1, 1, 1, 2, 2, 256], 'longest window'),
    ('kernel_sizes_by_hand', lambda: [1, 1, 2, 4, 4, 512], 'each other level 7'),
    ('kernel_sizes_by_hand', lambda: [2, 2, 2, 2, 4, 512], 'left alone'),
    ('leaky_log', lambda: ('a', 2.184 / math.log(2)), 'too good to be true'),
    ('leaky_log', lambda: ('b', 0.737), 'nats are not bits'),
    ('leaky_log', lambda: ('b', 0.737 * math.log(2)), 'do not multiply'),
    ('average', lambda x, f: sum(x.roll(s, dims=1) for s in range(f)) / f, 'future: output 0 depends on input 15'),
    ('average', lambda x, f: F.pad(x, (0, 0, 0, f - 1)).unfold(1, f, 1).mean(-1), 'future: output 0 depends on input 1'),
    ('average', block_average, 'looks into the future'),
    ('average', lambda x, f: x[:, ::f], r'shape must stay \(1, 16, 2\), and is \(1, 8, 2\)'),
    ('average', in_place, 'writes into its input'),
    ('average', cumulative, 'left the window.*round-off'),
    ('average', lambda x, f: sum(F.pad(x, (0, 0, s, -s)) for s in range(f - 1)) / f, 'too short'),
    ('average', lambda x, f: average(x, f) * f, 'no mean'),
    ('average', lambda x, f: average(x.double(), f), 'numbers must stay torch.float32'),
    ('average', lambda x, f: average(x, f).numpy(), 'must return a tensor, and it returns ndarray'),
    ('average', lambda x, f: average(x, f) if f < x.size(1) else x, 'with f=8 and T=8 it is not causal_haar'),
    ('average', lambda x, f: average(x, f) if x.size(1) % f == 0 else x, 'with f=2 and T=11'),
    ('average', of_those_that_exist, 'zeros before the first step'),
    ('details', lambda x, K: [average(x, 2 ** j) for j in range(K, -1, -1)], 'do not add up'),
    ('details', lambda x, K: [average(x, 2 ** K)], 'K . 1 = 2 parts'),
    ('details', lambda x, K: [average(x, 2 ** K), x - average(x, 2 ** K)] + [x * 0] * (K - 1), 'd_1 is not a_0 - a_1'),
    ('details', lambda x, K: [block_average(x, 2 ** K), x - block_average(x, 2 ** K)], 'looks into the future'),
    ('newest_average', lambda past, x, f: torch.cat((past, x), 1)[:, -f:].mean(dim=1, keepdim=True), 'missing are zeros'),
    ('newest_average', lambda past, x, f: torch.cat((past, x), 1).sum(dim=1, keepdim=True) / f, 'has left the window'),
    ('newest_average', lambda past, x, f: torch.cat((past[:, past.size(1) - f + 1:], x), 1).sum(1, keepdim=True) / f, 'is in the window'),
    ('newest_average', lambda past, x, f: past[:, -f:].sum(dim=1, keepdim=True) / f, 'forgets the newest'),
    ('average_backward', average, 'which input 1 never enters'),
    ('average_backward', lambda grad, f: average(grad.flip(1), f).flip(1) * f, 'not what autograd gives'),
    ('average_backward', lambda grad, f: sum(grad.roll(-s, dims=1) for s in range(f)) / f, 'never enters'),
    ('learnable_average', centred, 'looks into the future'),
    ('learnable_average', lambda x, kernel: answers.learnable_average(x, kernel.flip(1)), 'turned around'),
    ('learnable_average', lambda x, kernel: answers.learnable_average(x, kernel[:1].expand_as(kernel)), 'share a kernel'),
    ('learnable_average', lambda x, kernel: answers.learnable_average(x, kernel.detach()), 'no gradient reaches the kernel'),
    ('learnable_average', lambda x, kernel: answers.learnable_average(x, nn.Parameter(kernel)), 'no gradient reaches the kernel'),
    ('learnable_average', lambda x, kernel: answers.learnable_average(x.detach(), kernel), 'no gradient reaches x'),
    ('learnable_average', lambda x, kernel: answers.learnable_average(x, kernel / kernel.sum(1, keepdim=True)), 'as they are'),
    ('learnable_average', lambda x, kernel: answers.learnable_average(x, kernel[:, -4:]), 'with K=8 and T=5'),
    ('reads_the_future', lambda mixer, T, C: False, 'does not notice block average'),
    ('reads_the_future', lambda mixer, T, C: True, 'false alarm: causal_haar'),
    ('reads_the_future', cuts_in_the_middle, 'does not notice block average'),
    ('reads_the_future', moves_the_end_only, 'does not notice a look ahead at the first step only'),
    ('reads_the_future', tolerates, 'hundred-thousandth'),
    ('reads_the_future', compares_neighbours, 'three steps'),
    ('reads_the_future', asks_for_slopes, 'without a slope'),
    ('reads_the_future', dyes_with_nan, 'false alarm: a triangular matrix'),
    ('my_filter', lambda x: x * 2, 'no memory'),
    ('my_filter', lambda x: (x.roll(1, dims=1) + x + x.roll(-1, dims=1)) / 3, 'looks into the future'),
    ('my_filter', lambda x: average(x, 2) / x.size(1), 'if more follow'),
    ('my_filter', lambda x: average(x, 2) - x.mean(dim=0, keepdim=True) / 2, 'sequences of a batch mix'),
    ('my_filter', lambda x: average(x, 2)[:, 1:], 'shape must stay'),
    ('my_filter', lambda x: sum(F.pad(x, (0, 0, s, -s)) for s in range(4)) / 4, 'with T=1, as generation begins, it stops'),
    ('my_filter', lambda x: torch.cat((answers.my_filter(x)[..., :3], x[..., 3:].roll(-1, dims=1)), dim=2), 'looks into the future'),
    ('my_filter', lambda x: answers.my_filter(x.detach()), 'no gradient reaches x'),
]


@pytest.mark.parametrize('name, mistake, said', WRONG)
def test_a_typical_mistake_is_refused_by_the_property_that_it_breaks(name, mistake, said, request):
    if request.config.getoption('--mine'):
        pytest.skip('this is about the checks')
    with pytest.raises(Broken, match=said):
        globals()['check_' + name](mistake)


def test_every_exercise_has_an_answer_of_the_same_form_and_a_mistake():
    for module in (exercises, answers):
        functions = inspect.getmembers(module, inspect.isfunction)
        written = {name for name, function in functions if function.__module__ == module.__name__}
        assert written >= set(NAMES)  # a student may add helpers
    for name in NAMES:
        mine, theirs = (inspect.signature(getattr(module, name)) for module in (exercises, answers))
        assert list(mine.parameters) == list(theirs.parameters), f'{name}: leave its arguments as they were, {theirs}'
    assert {name for name, _, _ in WRONG} == set(NAMES)
