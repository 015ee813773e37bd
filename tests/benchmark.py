"""
How fast it is, as ratios within one run:  python tests/benchmark.py

Machines differ, and the same machine differs from minute to minute. So the things that are compared take turns, round by
round, and a ratio is the median over the rounds. A goal is what the project asks of itself; the table says where it is missed.
"""

import contextlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
import torch.nn.functional as F

import prepare_data
import train
from wavelet_gpt import GPT, GPTConfig, causal_haar, haar_shifts, kernel_sizes

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


def seconds(function):
    if DEVICE == 'cuda':
        torch.cuda.synchronize()
    begin = time.perf_counter()
    function()
    if DEVICE == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def take_turns(functions, rounds):
    """Seconds of each function, a list of one a round, after one round that does not count."""
    for function in functions.values():
        function()
    times = {name: [] for name in functions}
    calls = 20 if DEVICE == 'cuda' else 1  # one call there may be shorter than the wait for its end
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(seconds(lambda: [function() for _ in range(calls)]))
    return times


def ratio(times, name, to):
    return statistics.median(a / b for a, b in zip(times[name], times[to]))


def row(what, against, value, goal=''):
    print(f'{what:<50} {against:<36} {value:>9}  {goal}', flush=True)


# ---------------------------------------------------------------------------------------------------------------------
# The operation and what people write instead


def alternatives(kernel_size, T):
    """Other ways to the same means (up to rounding), as functions of x (B, T, C)."""
    sizes = kernel_size.tolist()
    device = kernel_size.device
    shifts = haar_shifts(sizes)
    C, first_averaged = len(sizes), sizes.count(1)
    groups = [(f, sizes.index(f), sizes.index(f) + sizes.count(f)) for f in sorted(set(sizes))]  # (f, first, end)
    t = torch.arange(T, device=device)
    before = (t[:, None] + 1 - kernel_size).clamp(min=0)  # (T, C): where the window of t begins
    age = t[:, None] - t[None, :]
    bands = {f: ((age >= 0) & (age < f)).float() / f for f, _, _ in groups}  # (T, T) each
    longest = max(sizes)
    taps = (torch.arange(longest, device=device)[:, None] >= longest - kernel_size).float() / kernel_size  # (longest, C)
    spectrum = torch.fft.rfft(taps.flip(0), n=2 * T, dim=0)  # (T + 1, C)

    def autograd(x):
        a, done = x * (1.0 / kernel_size), []
        for (shift, first), (_, following) in zip(shifts, (*shifts[1:], (0, C))):
            if not done:
                done, a = [a[..., :first]], a[..., first:]
            a = a + F.pad(a, (0, 0, shift, -shift))
            done, a = [*done, a[..., :following - first]], a[..., following - first:]
        return torch.cat(done, dim=-1)

    def cumulative_sum(x):
        c = F.pad(x.cumsum(dim=1), (0, 0, 1, 0))
        return (c[:, 1:] - c.gather(1, before.expand(len(x), -1, -1))) / kernel_size

    def grouped_conv1d(x):
        alone, averaged = x.tensor_split([first_averaged], dim=-1)
        y = F.conv1d(F.pad(averaged.transpose(1, 2), (longest - 1, 0)), taps[:, first_averaged:].T[:, None], groups=averaged.size(-1))
        return torch.cat((alone, y.transpose(1, 2)), dim=-1)

    def fft(x):
        return torch.fft.irfft(torch.fft.rfft(x, n=2 * T, dim=1) * spectrum, n=2 * T, dim=1)[:, :T]

    def banded_matmul(x):
        return torch.cat([bands[f] @ x[..., first:end] if f > 1 else x[..., first:end] for f, first, end in groups], dim=-1)

    def avg_pool1d(x):
        x = x.transpose(1, 2)
        pooled = [F.avg_pool1d(F.pad(x[:, first:end], (f - 1, 0)), f, stride=1) for f, first, end in groups]
        return torch.cat(pooled, dim=1).transpose(1, 2)

    return {'shifted adds through autograd': autograd, 'cumulative sum, difference': cumulative_sum, 'FFT convolution': fft,
            'banded matrix product': banded_matmul, 'grouped conv1d': grouped_conv1d, 'avg_pool1d': avg_pool1d}


def forward_backward(function, x):
    gradient, leaf = torch.randn_like(x), x.clone().requires_grad_()

    def run():
        leaf.grad = None
        function(leaf).backward(gradient)
    return run


def benchmark_operation(shape, dtype, rounds, goal):
    torch.compiler.reset()  # else the second shape is compiled for all shapes, which is slower
    x = torch.randn(shape, device=DEVICE).to(dtype)
    kernel_size = kernel_sizes(shape[2], shape[1]).to(DEVICE)
    shifts = haar_shifts(kernel_size.tolist())
    functions = {'copy': lambda: x.clone(), 'causal_haar': forward_backward(lambda x: causal_haar(x, kernel_size, shifts), x)}
    if DEVICE == 'cuda':
        compiled = torch.compile(lambda x: causal_haar(x, kernel_size, shifts))
        try:
            compiled(x)
            functions['causal_haar, compiled'] = forward_backward(compiled, x)
        except Exception as error:  # no C compiler, an old GPU
            print(f'torch.compile does not work here: {error!r:.100}')
    exact = causal_haar(x, kernel_size)
    if dtype == torch.float32:
        for name, function in alternatives(kernel_size, shape[1]).items():
            torch.testing.assert_close(function(x), exact, atol=1e-3, rtol=1e-3)
            functions[name] = forward_backward(function, x)
    times = take_turns(functions, rounds)
    for name in functions:
        if name != 'copy':
            ours = name.startswith('causal_haar')
            row(name, f'a copy, {tuple(shape)} {str(dtype)[6:]}', f'{ratio(times, name, "copy"):.1f}', goal if ours else '')


def benchmark_growth():
    """The cost per token at T = 16,384 against T = 512: should grow like the number of levels, 14 to 9."""
    functions = {}
    for T in (512, 16384):
        x = torch.randn(16384 // T, T, 128, device=DEVICE)
        kernel_size = kernel_sizes(128, T).to(DEVICE)
        shifts = haar_shifts(kernel_size.tolist())
        functions[T] = forward_backward(lambda x, k=kernel_size, shifts=shifts: causal_haar(x, k, shifts), x)
    times = take_turns(functions, 20)
    row('causal_haar a token, T = 16384', 'T = 512', f'{ratio(times, 16384, 512):.2f}', f'<= {14 / 9:.2f}, as log T')


# ---------------------------------------------------------------------------------------------------------------------
# Training


def nanogpt_loop(settings, steps):
    """Steps of a straightforward nanoGPT loop on the same data and the same plain model: seconds."""
    data = np.memmap('data/noise/train.bin', dtype=np.uint8, mode='r')
    T, B = settings.block_size, settings.batch_size
    model = GPT(train.model_config(settings, 256)).to(DEVICE)  # wavelet=off: nanoGPT's own arithmetic
    groups = [dict(params=[p for p in model.parameters() if p.dim() >= 2], weight_decay=0.1),
              dict(params=[p for p in model.parameters() if p.dim() < 2], weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), **(dict(fused=True) if DEVICE == 'cuda' else {}))
    modern = DEVICE == 'cuda' and torch.cuda.get_device_capability() >= (8, 0)  # else float16, as train.py has it
    context = torch.autocast('cuda', torch.bfloat16 if modern else torch.float16) if DEVICE == 'cuda' else contextlib.nullcontext()

    def get_batch():
        starts = torch.randint(len(data) - T, (B,))
        x, y = (torch.stack([torch.from_numpy(data[i + k:i + k + T].astype(np.int64)) for i in starts]) for k in (0, 1))
        if DEVICE == 'cuda':
            return x.pin_memory().to(DEVICE, non_blocking=True), y.pin_memory().to(DEVICE, non_blocking=True)
        return x, y

    def step():
        with context:
            loss = model(*get_batch())[1]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss
    return seconds(lambda: [step() for _ in range(steps)])


def our_loop(settings):
    """Seconds of training in train.py itself, as its log.csv states them."""
    with contextlib.redirect_stdout(io.StringIO()):
        return train.train(settings)[3][-1]['seconds']


def benchmark_training(size, rounds, steps, variants=()):
    torch.compiler.reset()
    names = (*variants, 'on', 'off')
    settings = {wavelet: train.Settings(dataset='noise', size=size, wavelet=wavelet, max_steps=steps, eval_interval=steps,
                                        eval_windows=1) for wavelet in names}
    times = {name: [] for name in (*names, 'nanoGPT')}
    for _ in range(rounds + 1):
        for name in names:
            times[name].append(our_loop(settings[name]))
        times['nanoGPT'].append(nanogpt_loop(settings['off'], steps))
    times = {name: values[1:] for name, values in times.items()}  # the first round warms up
    row(f'training step, {size} size, wavelet on', 'wavelet off', f'{ratio(times, "on", "off"):.3f}', '<= 1.03')
    row(f'training step, {size} size, wavelet off', 'nanoGPT loop, eager', f'{ratio(times, "off", "nanoGPT"):.2f}',
        '<= 0.50' if DEVICE == 'cuda' and size == 'paper' else '<= 1.00')
    for name in variants:
        row(f'training step, {size} size, wavelet {name}', 'wavelet on', f'{ratio(times, name, "on"):.2f}')


def benchmark_memory():
    """Bytes that one average keeps for its backward, beyond the output it makes: nothing."""
    kept = []
    x = torch.randn(16, 512, 128, device=DEVICE, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes), lambda t: t):
        causal_haar(x, kernel_sizes(128, 512).to(DEVICE))
    row('memory kept for the backward of causal_haar', 'its output', f'{sum(kept) / x.nbytes:.1f}', '0')


# ---------------------------------------------------------------------------------------------------------------------
# Generation, and the start


def benchmark_generation():
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=512, vocab_size=256, n_layer=10, n_head=8, wavelet='on')).to(DEVICE).eval()

    def token_cost(position, use_cache):
        """Median seconds of a token at about this position, after one that reads the prompt."""
        stream = model.stream(torch.zeros(1, position - 11, dtype=torch.long, device=DEVICE), 22, use_cache=use_cache)
        next(stream)
        return statistics.median(seconds(lambda: next(stream)) for _ in range(21))
    times = {name: [token_cost(*arguments) for _ in range(5)]
             for name, arguments in dict(plain=(500, False), late=(500, True), early=(50, True)).items()}
    row('a generated token at 500 without the cache', 'with it', f'{ratio(times, "plain", "late"):.1f}', '>= 10' if DEVICE == 'cpu' else '')
    row('a generated token at 500 with the cache', 'at 50', f'{ratio(times, "late", "early"):.2f}', 'about 1')


def benchmark_start():
    def until(beginning, *words):
        """Seconds from the start of train.py until it prints a line that begins so."""
        with subprocess.Popen([sys.executable, ROOT / 'train.py', *words], stdout=subprocess.PIPE, text=True) as process:
            took = seconds(lambda: next(line for line in process.stdout if line.startswith(beginning)))
            process.kill()
        return took
    row('train.py --help', 'seconds', f'{until("  --compile", "--help"):.1f}', '<= 1.5')
    words = ('--dataset=noise', '--max_steps=1', '--eval_windows=1', '--compile=off')
    row('train.py from start to the end of its first step', 'seconds', f'{until("step     1/1", *words):.1f}', '<= 10')


def main():
    print(f'{torch.cuda.get_device_name() if DEVICE == "cuda" else f"CPU, {torch.get_num_threads()} threads"}, torch {torch.__version__}')
    row('what', 'against', 'ratio', 'goal')
    if DEVICE == 'cuda':
        benchmark_operation((64, 512, 128), torch.bfloat16, 5, '<= 2')
        benchmark_operation((64, 2048, 1024), torch.bfloat16, 3, '<= 2')
    benchmark_operation((16, 512, 128), torch.float32, 10, '<= 8')
    benchmark_growth()
    benchmark_memory()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        noise = np.random.default_rng(0).integers(256, size=1_000_000)
        with contextlib.redirect_stdout(io.StringIO()):
            prepare_data.write_dataset('noise', dict(train=noise, val=noise[:10000]),
                                       dict(modality='text', vocab_size=256, characters=''.join(map(chr, range(256)))))
        benchmark_training('laptop', 4, 100 if DEVICE == 'cuda' else 4, variants=('learnable', 'ema', 'past'))
        benchmark_training('paper', 3, 100 if DEVICE == 'cuda' else 2)
        benchmark_start()
    benchmark_generation()


if __name__ == '__main__':
    main()
