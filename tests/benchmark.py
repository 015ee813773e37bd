"""
How fast it is, as ratios within one run:  python tests/benchmark.py

Machines differ, and one machine differs from minute to minute. So the things that are
compared take turns, and the median of the rounds' ratios counts. Two minutes on 2 cores.
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

import numpy as np
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import prepare_data
import train
from wavelet_gpt import GPT, GPTConfig, causal_haar, kernel_sizes

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'

def wait():
    if DEVICE == 'cuda':
        torch.cuda.synchronize()

def take_turns(functions, rounds):
    """{name: [seconds of a call, one a round]}, after a first round that does not count."""
    times = {name: [] for name in functions}
    for n in range(rounds + 1):
        for name, function in functions.items():
            wait()
            begin = time.perf_counter()
            function()
            wait()
            if n > 0:
                times[name].append(time.perf_counter() - begin)
    return times

def row(what, against, ratio, goal=''):
    print(f'{what:<42} {against:<32} {ratio:>8.2f}  {goal}', flush=True)

def ratio(times, a, b):
    return statistics.median(one / other for one, other in zip(times[a], times[b]))

# --- the operation, and what people write instead

def alternatives(sizes, T):
    """Other ways to the same means, up to rounding: {name: function of x (B, T, C)}."""
    f = torch.tensor(sizes, device=DEVICE)  # (C,)
    t = torch.arange(T, device=DEVICE)
    begins = (t[:, None] + 1 - f).clamp(min=0)  # (T, C), where the window of t begins
    longest = max(sizes)
    ages = torch.arange(longest - 1, -1, -1, device=DEVICE)  # the newest step stands last
    kernels = (ages < f[:, None]) / f[:, None]  # (C, longest)

    def cumulative_sum(x):
        sums = F.pad(x.cumsum(dim=1), (0, 0, 1, 0))
        return (sums[:, 1:] - sums.gather(1, begins.expand(len(x), -1, -1))) / f

    def grouped_conv1d(x):
        padded = F.pad(x.transpose(1, 2), (longest - 1, 0))
        return F.conv1d(padded, kernels[:, None], groups=len(sizes)).transpose(1, 2)

    return {'cumulative sum': cumulative_sum, 'grouped conv1d': grouped_conv1d}

def forward_backward(function, x):
    leaf, gradient = x.clone().requires_grad_(), torch.randn_like(x)

    def run():
        leaf.grad = None
        function(leaf).backward(gradient)
    return run

def benchmark_operation(shape, rounds):
    B, T, C = shape
    x, sizes = torch.randn(shape, device=DEVICE), kernel_sizes(C, T)
    ways = {'causal_haar': lambda x: causal_haar(x, sizes), **alternatives(sizes, T)}
    functions = {'a copy': x.clone}
    for name, way in ways.items():
        torch.testing.assert_close(way(x), causal_haar(x, sizes), atol=1e-3, rtol=1e-3)
        functions[name] = forward_backward(way, x)
    times = take_turns(functions, rounds)
    for name in ways:
        row(f'{name}, forward and backward', f'a copy, {shape}', ratio(times, name, 'a copy'))

# --- training

def settings(size, wavelet, steps):
    sys.argv = ['train.py', '--dataset=noise', f'--size={size}', f'--wavelet={wavelet}',
                f'--max_steps={steps}', f'--eval_interval={steps}', '--learning_rate=0.001']
    return train.read_settings()[0]

def our_loop(size, wavelet, steps):
    """Seconds of training in train.py itself, as its log states them."""
    with contextlib.redirect_stdout(io.StringIO()):
        checkpoint, _ = train.train(settings(size, wavelet, steps))
    return checkpoint['rows'][-1]['seconds']

def nanogpt_loop(size, steps):
    """Seconds of the same steps in a loop as nanoGPT's, on the same data and plain model."""
    args = settings(size, 'off', steps)
    data = np.memmap('data/noise/train.bin', dtype=np.uint8, mode='r')
    T, B = args.block_size, args.batch_size
    model = GPT(GPTConfig(block_size=T, vocab_size=256, n_layer=args.n_layer, wavelet='off',
                          n_head=args.n_head, n_embd=args.n_embd)).to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    half = torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == 'cuda')

    def get_batch():
        ix = torch.randint(len(data) - T, (B,))
        x = torch.stack([torch.from_numpy(data[i:i + T].astype(np.int64)) for i in ix])
        y = torch.stack([torch.from_numpy(data[i + 1:i + 1 + T].astype(np.int64)) for i in ix])
        return x.to(DEVICE), y.to(DEVICE)

    begin = time.perf_counter()
    for _ in range(steps):
        with half:
            _, loss = model(*get_batch())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    wait()
    return time.perf_counter() - begin

def benchmark_training(size, rounds, steps):
    times = {name: [] for name in ('off', 'on', 'past', 'nanoGPT')}
    for _ in range(rounds + 1):
        for name in times:
            took = nanogpt_loop(size, steps) if name == 'nanoGPT' else our_loop(size, name, steps)
            times[name].append(took)
    times = {name: seconds[1:] for name, seconds in times.items()}  # the first one warms up
    row(f'a step, {size} size, on', 'off', ratio(times, 'on', 'off'), '<= 1.06')
    row(f'a step, {size} size, past', 'off', ratio(times, 'past', 'off'))
    row(f'a step, {size} size, off', 'a nanoGPT loop', ratio(times, 'off', 'nanoGPT'),
        '0.97 to 1.03')

# --- generation, and the start

def nanogpt_generate(model, idx, n):
    """As nanoGPT does it: the last block_size tokens are read anew for each token."""
    for _ in range(n):
        logits, _ = model(idx[:, -model.config.block_size:])
        token = torch.multinomial(logits[:, -1].softmax(dim=-1), num_samples=1)
        idx = torch.cat((idx, token), dim=1)

@torch.no_grad()
def benchmark_generation():
    shape = dict(block_size=512, vocab_size=256, n_layer=10, n_head=8, n_embd=128)
    on = GPT(GPTConfig(**shape)).to(DEVICE).eval()
    off = GPT(GPTConfig(**shape, wavelet='off')).to(DEVICE).eval()
    # a short context is quickly read anew, so a cache gains little there
    for begin, n, rounds, goal in (16, 60, 3, ''), (256, 240, 1, '>= 2'):
        prompt = torch.zeros(1, begin, dtype=torch.long, device=DEVICE)
        times = take_turns({'nanoGPT': lambda: nanogpt_generate(off, prompt, n),
                            'on': lambda: on.generate(prompt, n)}, rounds)
        row(f"nanoGPT's generate, {n} tokens after {begin}", 'ours with the cache, paper size',
            ratio(times, 'nanoGPT', 'on'), goal)

def seconds_until(beginning, *words):
    """From the start of train.py until it prints a line that begins so."""
    begin = time.perf_counter()
    with subprocess.Popen([sys.executable, ROOT / 'train.py', *words], stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, text=True) as process:
        next(line for line in process.stdout if line.startswith(beginning))
        took = time.perf_counter() - begin
        process.kill()
    return took

def main():
    threads = os.environ.get('OMP_NUM_THREADS', torch.get_num_threads())
    name = torch.cuda.get_device_name() if DEVICE == 'cuda' else f'CPU, {threads} threads'
    print(f'{name}, torch {torch.__version__}')
    print(f'{"what":<42} {"against":<32} {"ratio":>8}  goal')
    benchmark_operation((16, 512, 128), 10)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        noise = np.random.default_rng(0).integers(256, size=100_000)
        with contextlib.redirect_stdout(io.StringIO()):
            prepare_data.write_dataset('noise', dict(train=noise, val=noise[:2000]), dict(
                modality='audio', vocab_size=256, sample_rate=16000, source='noise'))
        # one evaluation takes longer than the steps: both of a run over as little as possible
        evaluate = train.evaluate
        train.evaluate = lambda *words: evaluate(*words, 1)
        benchmark_training('laptop', 6, 100 if DEVICE == 'cuda' else 3)
        benchmark_training('paper', 5, 100 if DEVICE == 'cuda' else 1)
        row('train.py to its first row', 'a second', seconds_until(
            'step     0', '--dataset=noise', '--wavelet=off', '--compile=off'))
    benchmark_generation()

if __name__ == '__main__':
    main()
