"""
Train a GPT with causal Haar averages between its blocks, and without them, and see the difference.

    python train.py                     the default: a wavelet GPT on the Python standard library, minutes on a laptop
    python train.py --wavelet=off       the plain GPT, everything else equal
    python train.py --size=paper        the paper's model: 10 layers, context 512, 10,000 steps: wants a GPU
    python train.py --resume            go on where the newest run of stdlib with the wavelet on was broken off
    python train.py --compare           no training: compare the finished runs on stdlib once more
    torchrun --nproc_per_node=2 train.py    two processes, a GPU each where there are GPUs; they share every batch

Everything goes to out/<run>/: log.csv, loss.png, the checkpoints last.pt and best.pt for sample.py, at the end result.json.
Then all finished runs on the same data are compared: a table, and their curves in out/<dataset>.png.
"""

import csv
import io
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from prepare_data import (FOLDER_NAME, decode_text, first_label, near_miss, prepare_stdlib, read_meta,
                          read_settings, read_tokens, write_aside)

# Of log.csv; labelled data add val_accuracy. tokens_per_s counts all positions that are computed, padding among them.
COLUMNS = ['step', 'train_loss', 'val_loss', 'tokens_per_s', 'seconds']
RANK, WORLD = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))  # of the processes of torchrun


@dataclass
class Settings:
    dataset: str = 'stdlib'  # a folder under data/, made by prepare_data.py
    wavelet: str = 'on'  # on: the paper's causal Haar averages between the blocks; learnable, ema, past: variants; off: plain GPT
    wavelet_fraction: float = 0.5  # of the embedding coordinates, averaged
    wavelet_min_level: int = 1  # the shortest average is over 2^this steps (of past: half as many, before the present one)
    wavelet_max_level: int = None  # the longest is over 2^this steps (past: half); as long as T and f(i) allow if left open
    size: str = 'laptop'  # laptop or paper: sets each of the following that is left open (laptop / paper)
    n_layer: int = None  # decoder blocks (4 / 10)
    n_head: int = None  # attention heads (4 / 8)
    n_embd: int = None  # C, embedding coordinates (128 / 128)
    block_size: int = None  # T, time steps the model sees at once (256 / 512; of labelled data, the longest example)
    batch_size: int = None  # sequences in a step (16 / 16)
    max_steps: int = None  # training steps, over which learning_rate falls: a resumed run keeps them (600 / 10000)
    eval_interval: int = None  # steps between two rows of log.csv (50 / 500)
    eval_windows: int = 128  # validation sequences, always the same; changes nothing in training
    dropout: float = 0.0  # 0 suits a model that sees its data about once
    bias: bool = False  # on: biases in the linear layers and LayerNorms, as GPT-2 has
    learning_rate: float = 1e-3  # the highest; reached after the warm-up, a tenth of it left at the end (cosine)
    warmup_steps: int = 100  # at most; never more than a sixth of the run
    weight_decay: float = 0.1  # of matrices only, not of biases, LayerNorms and learnable kernels
    grad_clip: float = 1.0  # the largest norm of the gradient of all parameters; a longer one is scaled down to it
    seed: int = 1337  # of the weights and of the order of the data
    run: str = ''  # where it goes, out/<run>/; <dataset>-<wavelet> if left open, numbered when that is taken
    resume: bool = False  # go on with --run, or the newest <dataset>-<wavelet>; may change: eval_*, device, compile
    compare: bool = False  # no training; compare finished runs alike in dataset, size, block_size, batch_size, max_steps, eval_windows
    device: str = 'auto'  # auto: cuda, then mps (where a try agrees with the CPU), then cpu; or one of them
    dtype: str = 'auto'  # auto: bfloat16 or float16 where the GPU is fast at it, else float32; or one of them (mps: float32)
    compile: bool = None  # torch.compile; left open: on with CUDA only, where it pays

    SIZES = dict(laptop=dict(n_layer=4, n_head=4, n_embd=128, block_size=256, batch_size=16, max_steps=600,
                             eval_interval=50),
                 paper=dict(n_layer=10, n_head=8, n_embd=128, block_size=512, batch_size=16, max_steps=10000,
                            eval_interval=500))

    MAY_CHANGE = 'run', 'resume', 'eval_interval', 'eval_windows', 'device', 'compile'  # when a run is resumed
    ALIKE = 'dataset', 'size', 'block_size', 'batch_size', 'max_steps', 'eval_windows'  # in runs that are compared

    def __post_init__(self):
        self.given = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
        if self.block_size is None and self.prepared() and 'labels' in (meta := read_meta(self.dataset)):
            self.block_size = longest_example(meta)
        for name, value in self.SIZES.get(self.size, self.SIZES['laptop']).items():
            if getattr(self, name) is None:
                setattr(self, name, value)

    def prepared(self):
        return re.fullmatch(FOLDER_NAME, self.dataset) and (Path('data') / self.dataset / 'meta.json').exists()

    def problems(self):
        """Every setting that cannot be, one sentence each; what concerns the model's shape is checked by GPTConfig."""
        for name, choices in dict(size=tuple(self.SIZES), device=('auto', 'cuda', 'mps', 'cpu'),
                                  dtype=('auto', 'float32', 'bfloat16', 'float16')).items():
            if getattr(self, name) not in choices:
                yield f'--{name}={getattr(self, name)} is not one of {", ".join(choices)}'
        for name, least in dict(batch_size=1, max_steps=1, eval_interval=1, eval_windows=1, warmup_steps=0, weight_decay=0,
                                seed=0).items():
            if not least <= getattr(self, name) <= 10 ** 9:
                yield f'--{name}={getattr(self, name)} must be at least {least} and at most 10^9'
        for name in 'learning_rate', 'grad_clip':
            if not 0 < getattr(self, name) < math.inf:
                yield f'--{name}={getattr(self, name)} must be more than 0 and finite'
        if self.compare and (self.run or self.resume):
            yield '--compare looks at all finished runs and trains nothing: leave out --run and --resume'
        elif self.run and not re.fullmatch(FOLDER_NAME, self.run):
            yield f'--run={self.run} becomes a folder in out/: use at most 60 letters, digits, _, - and .'
        elif self.resume and not self.run_to_resume():
            name = self.run or f'{self.dataset}-{self.wavelet}'
            names = [path.parent.name for path in Path('out').glob('*/last.pt')]
            yield f'--resume: there is no out/{name}/last.pt{near_miss(name, names)}; --run=NAME says which to go on with'
        elif self.run and not self.resume and (Path('out') / self.run).exists():
            yield f'--run={self.run}: there is an out/{self.run} already: choose another name, or go on with it by --resume'
        if self.dataset != 'stdlib' and not self.compare and not self.prepared():
            names = ['stdlib', *(path.parent.name for path in Path('data').glob('*/meta.json'))]
            yield (f'--dataset={self.dataset}: there is no data/{self.dataset}/meta.json{near_miss(self.dataset, names)}; '
                   f'make it with python prepare_data.py (see its --help)')
        try:
            model_config(self, vocab_size=1)
        except ValueError as error:
            yield from str(error).splitlines()

    def run_to_resume(self):
        """The last.pt of --run, or the newest of the default name; None if there is none."""
        name = re.escape(self.run) if self.run else re.escape(f'{self.dataset}-{self.wavelet}') + r'(-\d+)?'
        found = [path for path in Path('out').glob('*/last.pt') if re.fullmatch(name, path.parent.name)]
        return max(found, key=lambda path: path.stat().st_mtime, default=None)


def longest_example(meta):
    return max(max(lengths) for lengths in meta['pieces'].values()) - 1  # the label is predicted, and not read


def model_config(settings, vocab_size):
    from wavelet_gpt import GPTConfig  # here, since it imports torch: --help answers at once
    shape = {field.name: getattr(settings, field.name) for field in fields(GPTConfig) if field.name != 'vocab_size'}
    return GPTConfig(vocab_size=vocab_size, **shape)


if __name__ == '__main__':
    if RANK > 0:
        sys.stdout = open(os.devnull, 'w')  # one process speaks for all
    settings = read_settings(Settings, __doc__)

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from sample import load, printable, save_figure
from wavelet_gpt import GPT

# ---------------------------------------------------------------------------------------------------------------------
# The machine


def choose_device(settings):
    """The torch.device, the dtype of matrix products, and whether to compile; prints each with its reason."""
    gpu = 'cuda' if torch.cuda.is_available() else 'mps' if torch.backends.mps.is_available() and WORLD == 1 else None
    if settings.device in ('auto', 'cpu', gpu):
        device = settings.device if settings.device != 'auto' else gpu or 'cpu'
    else:
        raise SystemExit(f'--device={settings.device}: this PyTorch sees no such device here; use --device=auto')
    why = 'asked for' if settings.device != 'auto' else 'the GPU' if gpu else f'no GPU; {torch.get_num_threads()} threads'
    dtype, reason = 'float32', 'exact, and as fast as anything here'
    if device == 'cuda':
        local = int(os.environ.get('LOCAL_RANK', 0))
        if local >= torch.cuda.device_count():
            raise SystemExit(f'--nproc_per_node is more than the {torch.cuda.device_count()} GPUs of this machine')
        torch.cuda.set_device(local)
        capability = torch.cuda.get_device_capability()
        # Before Ampere bfloat16 is emulated, before Volta float16 is no faster.
        dtype = 'bfloat16' if capability >= (8, 0) else 'float16' if capability >= (7, 0) else 'float32'
        reason = f'compute capability {capability[0]}.{capability[1]}'
        why += f', {torch.cuda.get_device_name()}'
    if settings.dtype != 'auto':
        dtype, reason = settings.dtype, 'asked for'
    if device == 'mps' and dtype != 'float32':
        raise SystemExit(f'--dtype={dtype}: in 16 bits causal attention may see the future on MPS (PyTorch issue 195910): use float32, or --device=cpu')
    compiled = settings.compile if settings.compile is not None else device == 'cuda'
    print(f'device {device} ({why}), {dtype} ({reason}), torch.compile {"on" if compiled else "off"}')
    return torch.device(device), getattr(torch, dtype), compiled


def mps_or_cpu(config, batch_size):
    """The device mps if the loss, the gradients and the logits of a model of this config are there what they are on the CPU,
    else the CPU; says why.

    PyTorch on Apple's GPUs is known to compute wrong numbers without an error, such as grouped convolutions of kernels from
    256 steps on (its issue 188335), and gradients of more than 32,767 tokens (177116), which one try need not show.
    """
    model, found = GPT(config).eval(), []  # of random weights, on random tokens; without dropout, which differs
    idx = torch.randint(config.vocab_size, (batch_size, config.block_size))
    try:
        if idx.numel() > 32_767:
            raise ValueError('batch_size times block_size must be at most 32,767 there')
        for device in 'cpu', 'mps':
            model, idx = model.to(device), idx.to(device)
            loss = model(idx, idx)[1]
            results = [loss, *torch.autograd.grad(loss, list(model.parameters()))]
            with torch.no_grad():  # here PyTorch may choose other kernels
                results += model(idx, idx)
            found.append([result.detach().cpu() for result in results])
        if all((a - b).norm() <= 0.01 * a.norm() + 1e-6 for a, b in zip(*found)):
            return torch.device('mps')
        problem = 'it computes something else than the CPU'
    except Exception as error:  # an operation that is not there, too little memory
        problem = (str(error) or repr(error)).splitlines()[0][:100]
    print(f'MPS does not work for this model, going on on the CPU ({problem})')
    return torch.device('cpu')


def compile_or_not(model, batch, autocast):
    """torch.compile(model) if one step of it works on this machine, else the model as it is; says which."""
    try:
        compiled = torch.compile(model)
        with autocast:
            compiled(*batch)[1].backward()
        return compiled
    except Exception as error:  # a missing C compiler, an old GPU, a bug: none of them is a reason not to train
        print(f'torch.compile does not work here, going on without ({(str(error) or repr(error)).splitlines()[0][:100]})')
        return model
    finally:
        model.zero_grad()


# ---------------------------------------------------------------------------------------------------------------------
# The data


def load_tokens(dataset, split, meta, block_size, device):
    """data/<dataset>/<split>.bin as an integer tensor (N,), where each piece in it ends, (pieces,), and whether it is
    labelled.

    A piece is a file of music or sound, or an example and its label; a text is one piece. Both tensors are on the device
    if they fit into a quarter of its free memory, so that a batch is one gather there.
    """
    tokens, labelled = read_tokens(dataset, split, meta), 'labels' in meta
    if labelled and longest_example(meta) > block_size:
        raise SystemExit(f'data/{dataset} holds examples of up to {longest_example(meta)} tokens, and block_size={block_size} '
                         'would cut them: leave --block_size open, or prepare shorter ones with prepare_data.py --max_length')
    if not labelled and len(tokens) <= block_size:
        raise SystemExit(f'data/{dataset}/{split}.bin holds {len(tokens)} tokens, fewer than one window of block_size={block_size} + 1: '
                         f'give it more data, or train with --block_size={max(2, len(tokens) // 4)}')
    tokens = torch.from_numpy(tokens if meta['vocab_size'] <= 256 else tokens.astype(np.int32))
    ends = torch.tensor(meta.get('pieces', {}).get(split, [len(tokens)])).cumsum(0)
    fits = device.type != 'cuda' or tokens.nbytes < torch.cuda.mem_get_info()[0] / 4
    return (tokens.to(device), ends.to(device), labelled) if fits else (tokens, ends, labelled)


def places(data, T):
    """How many sequences there are to choose from: the labelled examples, else one that begins at each token but the last T;
    at the last T tokens, too, where the last of several pieces has no more than T."""
    tokens, ends, labelled = data
    short = len(ends) > 1 and ends[-1] - ends[-2] <= T
    return len(ends) if labelled else len(tokens) if short else len(tokens) - T


def windows(data, starts, T, device):
    """The sequences of T tokens that begin at starts (B,), and for each of their tokens the next: two (B, T).

    A window stays within its piece: one that would run over the end is moved back. Where the piece is shorter than the
    window, what follows belongs to the next piece: those targets are -1, and causality keeps the rest from seeing it.

    Of labelled data, starts (B,) are the numbers of the examples: each is read from its first token on, and all its targets
    but the label are -1. Shorter ones are padded (with token 0) from the label on, where causality hides it from every
    position that counts, so that nothing needs a mask: before the first token there is nothing to attend to, and the
    averages take zeros there, at any length alike. Padding on the left would be read by both.
    """
    tokens, ends, labelled = data
    if tokens.is_cuda:
        starts = starts.pin_memory()  # any other copy to a GPU waits until all that was launched before it is done
    starts = starts.to(tokens.device, non_blocking=tokens.is_cuda)
    begins = F.pad(ends, (1, 0))
    piece = starts if labelled else torch.searchsorted(ends, starts, right=True)  # (B,)
    starts = begins[piece] if labelled else starts.minimum(ends[piece] - T - 1).maximum(begins[piece])
    at = starts[:, None] + torch.arange(T + 1, device=tokens.device)  # (B, T + 1), where each token stands in the data
    sequences = tokens[at.clamp(max=len(tokens) - 1)].to(device).long()  # one gather
    last = ends[piece, None] - 1  # (B, 1), where the last token of the piece stands, of labelled data the label
    following = sequences.masked_fill((at != last if labelled else at > last).to(device), -1)
    if labelled:
        sequences = sequences.masked_fill((at >= last).to(device), 0)
    return sequences[:, :-1], following[:, 1:]


def fixed_windows(data, settings, device, number):
    """Batches of idx, targets: as many sequences as number says, spread evenly over the data, always the same ones."""
    starts = torch.linspace(0, places(data, settings.block_size) - 1, number, dtype=torch.double).long()
    for some in starts.split(settings.batch_size):
        yield windows(data, some, settings.block_size, device)


@torch.no_grad()
def evaluate(model, data, settings, device, autocast, number=None):
    """Mean loss in nats a token, and the share of targets that were the model's likeliest token, over as many fixed windows as
    number says, or eval_windows says if it is left open; if given, progress is printed."""
    model.eval()
    total = right = count = 0
    for idx, targets in fixed_windows(data, settings, device, number or settings.eval_windows):
        with autocast:
            logits, loss = model(idx, targets)
        counted = (targets >= 0).sum().item()
        total += loss.item() * counted
        right += (logits.argmax(dim=-1) == targets).sum().item()
        count += counted
        if number and sys.stdout.isatty():  # all of them: that takes a while, but a log file needs no progress
            print(f'\r{count:,} of {number:,} examples ', end='', flush=True)
    model.train()
    return total / count, right / count


@torch.no_grad()
def loss_by_position(model, data, settings, device, autocast):
    """Where in the context the loss arises: pairs [n, nats] over the windows of evaluate, nats being the mean loss of the
    predictions that see at most n tokens, and more than the previous n: n = 1, 2, 4 ... and block_size."""
    T = settings.block_size
    total, count = torch.zeros(2, T, dtype=torch.double)
    model.eval()
    for idx, targets in fixed_windows(data, settings, device, settings.eval_windows):
        with autocast:
            logits = model(idx)[0]
        losses = F.cross_entropy(logits.float().transpose(1, 2), targets, ignore_index=-1, reduction='none')  # (B, T)
        total += losses.sum(0).cpu()
        count += (targets >= 0).sum(0).cpu()
    model.train()
    ends = [2 ** n for n in range(T.bit_length()) if 2 ** n < T] + [T]
    parts = [slice(begin, end) for begin, end in zip([0, *ends], ends)]
    return [[n, (total[part].sum() / count[part].sum()).item()] for n, part in zip(ends, parts) if count[part].sum()]


def in_unit(nats, modality):
    """The loss as its field states it: bits per character of text or sample of sound, nats per event of music."""
    return {'text': f'{nats / math.log(2):.3f} bits per character', 'audio': f'{nats / math.log(2):.3f} bits per sample',
            'music': f'{nats:.3f} nats per event'}[modality]


# ---------------------------------------------------------------------------------------------------------------------
# The loop


def new_run(settings):
    """Make and return out/<run>/; a default name that is taken gets a number."""
    name = settings.run or f'{settings.dataset}-{settings.wavelet}'
    number = 1
    while not settings.run and (Path('out') / name).exists():
        number += 1
        name = f'{settings.dataset}-{settings.wavelet}-{number}'
    folder = Path('out') / name
    try:
        folder.mkdir(parents=True)  # fails if another run has just made it: two never share a folder
    except OSError as error:
        raise SystemExit(f'could not make the folder {folder}: {error.strerror}')
    return folder


def resumed(settings):
    """The checkpoint that --resume goes on from, its model, and its settings with those changed that may change."""
    path = settings.run_to_resume()
    checkpoint, model = load(path)
    try:
        kept = Settings(**checkpoint['settings'])
        for field in fields(kept):
            if not isinstance(getattr(kept, field.name), (field.type, int, type(field.default))):
                raise TypeError(f'{field.name}={getattr(kept, field.name)!r}')
        changed = [name for name in settings.given if getattr(settings, name) != getattr(kept, name)]
        problems = [f'--{name}={getattr(settings, name)} contradicts {path}, which has {getattr(kept, name)}: only '
                    f'{", ".join(kept.MAY_CHANGE[2:])} may change' for name in changed if name not in kept.MAY_CHANGE]
        for name in changed:
            setattr(kept, name, getattr(settings, name))
        kept.run, kept.resume = path.parent.name, True
        if not problems:
            problems += kept.problems()
        if not problems and asdict(model_config(kept, model.config.vocab_size)) != checkpoint['config']:
            raise ValueError('its settings and its model contradict each other')
    except Exception as error:  # a stranger may have written it
        raise SystemExit(f'{path} cannot be resumed: {printable(str(error))}')
    if problems:
        raise SystemExit('\n  '.join(['nothing was done, because', *problems]))
    return checkpoint, model, kept


def restore(checkpoint, settings, optimizer, scaler, order):
    """Put all that moves but the weights where it was at the checkpoint; returns step, rows and three running numbers."""
    try:
        optimizer.load_state_dict(dict(optimizer.state_dict(), state=checkpoint['optimizer']['state']))
        for parameter, state in optimizer.state.items():
            if not state['exp_avg'].shape == state['exp_avg_sq'].shape == parameter.shape or state['step'].numel() != 1:
                raise ValueError('its optimizer belongs to another model')
        if checkpoint['scaler'] and scaler.is_enabled():
            scaler.load_state_dict({name: number + 0 for name, number in checkpoint['scaler'].items()})
        order.set_state(checkpoint['order'])
        torch.set_rng_state(checkpoint['rng'])
        if checkpoint['cuda_rng'] is not None and torch.cuda.is_initialized():
            torch.cuda.set_rng_state(checkpoint['cuda_rng'])
        step, rows, *numbers = (checkpoint[name] for name in ('step', 'rows', 'total_loss', 'best_loss', 'seconds'))
        columns = COLUMNS + ['val_accuracy'] * ('labels' in checkpoint['meta'])
        if not (all(list(row) == columns for row in rows) and rows[-1]['step'] <= step <= settings.max_steps and all(
                type(number) in (int, float) and abs(number) < 1e15 for row in rows for number in [*row.values(), *numbers])):
            raise ValueError('its log is damaged')
        return step, rows, *numbers
    except Exception as error:  # a stranger may have written it
        raise SystemExit(f'out/{settings.run}/last.pt cannot be resumed: {(str(error) or repr(error)).splitlines()[0]}')


@contextmanager
def signals_noted():
    """A list that takes note of Ctrl-C and SIGTERM, so that the step can be finished; a second one is obeyed at once."""
    def note(number, frame):
        noted.append(number)
        if WORLD == 1:  # torchrun repeats it by itself
            for number, handler in before.items():
                signal.signal(number, handler)
    noted = []
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def learning_rate_at(step, settings):
    """Linear warm-up, then a cosine from learning_rate down to a tenth of it at the last step."""
    warmup = min(settings.warmup_steps, settings.max_steps // 6)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / (settings.max_steps - warmup)
    return settings.learning_rate * (0.55 + 0.45 * math.cos(math.pi * progress))


def train(settings, noted=()):
    """The trained model, what its tokens mean, its folder and its log. noted: stop and save when it is not empty."""
    checkpoint, model = None, None
    if settings.resume:
        checkpoint, model, settings = resumed(settings)
    if settings.batch_size % WORLD:
        raise SystemExit(f'--batch_size={settings.batch_size} must be a multiple of the {WORLD} processes that share it')
    device, dtype, compiled = choose_device(settings)
    if WORLD > 1:
        dist.init_process_group('cpu:gloo,cuda:nccl' if device.type == 'cuda' else 'gloo')
    if settings.dataset == 'stdlib' and not Path('data/stdlib/meta.json').exists() and RANK == 0:
        print('data/stdlib is not there yet: preparing it, as python prepare_data.py does')
        prepare_stdlib()
    if WORLD > 1:
        dist.barrier()  # until it is prepared
    meta = read_meta(settings.dataset)
    if checkpoint and checkpoint['meta'] != meta:
        what = 'another vocabulary' if checkpoint['meta'].get('characters') != meta.get('characters') else 'other tokens'
        raise SystemExit(f'data/{settings.dataset} has {what} than out/{settings.run} was trained on')
    T, B = settings.block_size, settings.batch_size
    config = model_config(settings, meta['vocab_size'])
    if device.type == 'mps':
        device = mps_or_cpu(config, B)
    labelled = 'labels' in meta
    train_data, val_data, *test_data = (load_tokens(settings.dataset, split, meta, T, device)
                                        for split in ('train', 'val', 'test')[:2 + labelled])

    torch.manual_seed(settings.seed)
    torch.set_float32_matmul_precision('high')  # float32 products in TF32, on GPUs that have it
    model = (model or GPT(config)).to(device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f'{settings.dataset}: {len(train_data[0]):,} tokens to train on; model: {parameters:,} parameters, '
          f'wavelet {config.wavelet}')
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    others = [parameter for parameter in model.parameters() if parameter.dim() != 2]
    optimizer = torch.optim.AdamW([dict(params=matrices, weight_decay=settings.weight_decay),
                                   dict(params=others, weight_decay=0.0)],
                                  lr=settings.learning_rate, betas=(0.9, 0.99), fused=True)  # betas: nanoGPT's for small models
    autocast = nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)
    # float16 cannot hold small gradients: the scaler multiplies the loss, and divides the gradients again; else it does nothing.
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    order = torch.Generator().manual_seed(settings.seed)  # the data's own: nothing else that is random moves it

    mine = slice(RANK * B // WORLD, (RANK + 1) * B // WORLD)  # of every batch, which all processes draw alike
    some = windows(val_data, torch.zeros(B).long()[mine], T, device)  # any batch, to try torch.compile on
    stepped = compile_or_not(model, some, autocast) if compiled else model
    compiled = stepped is not model  # it may not work on this machine
    if WORLD > 1:
        stepped = torch.nn.parallel.DistributedDataParallel(stepped)  # averages the gradients
        stepped.broadcast_buffers = False  # f(i) never changes: nothing to send around before every step
    step, rows, total, best_loss, seconds = 0, [], 0.0, math.inf, 0.0
    mixed = False  # whether rows were measured over different numbers of windows
    if checkpoint:
        step, rows, total, best_loss, seconds = restore(checkpoint, settings, optimizer, scaler, order)
        mixed = checkpoint.get('mixed', False) or checkpoint['settings'].get('eval_windows') != settings.eval_windows
        print(f'going on with out/{settings.run} at step {step}')
    if RANK > 0 or device.type == 'mps':  # other dropout in each process, and on MPS after a resume: its state is not saved
        torch.manual_seed(settings.seed + 1000 * step + RANK)
    folder = Path('out') / settings.run if checkpoint else None  # made when there is something to put into it
    # total_loss and seconds are the training loss, summed, and the time of training since the last row of the log. The loss
    # is summed on the device, and read off into total when a row or a stop is due: to read a number off a GPU is to wait for it.
    total_loss = torch.tensor(total, dtype=torch.float, device=device)
    choices = places(train_data, T)
    clock = time.perf_counter() - seconds

    while True:
        stop = torch.tensor(len(noted))
        if WORLD > 1:
            dist.all_reduce(stop)  # all stop at the same step; on the CPU, so that nothing waits for a GPU
        due = step % settings.eval_interval == 0 or step == settings.max_steps
        due = due and (not rows or step > rows[-1]['step'])  # a resumed run may have the row of its step already
        if due or stop:
            if WORLD > 1:
                dist.all_reduce(total_loss.div_(WORLD))
            total, seconds = total_loss.item(), time.perf_counter() - clock
            if due:
                steps = step - rows[-1]['step'] if rows else 0
                # The mean of the batches since the last row; before the first step, of fixed windows.
                train_loss = total / steps if steps else evaluate(model, train_data, settings, device, autocast)[0]
                val_loss, val_accuracy = evaluate(model, val_data, settings, device, autocast)
                rows.append(dict(step=step, train_loss=train_loss, val_loss=val_loss,
                                 tokens_per_s=steps * B * T / seconds if steps else 0.0,
                                 seconds=rows[-1]['seconds'] + seconds if rows else 0.0,
                                 **(dict(val_accuracy=val_accuracy) if labelled else {})))
            if not math.isfinite(total + rows[-1]['val_loss']) or not all(p.isfinite().all() for p in model.parameters()):
                raise SystemExit(f'the loss is no longer a number at step {step}, and nothing of that is saved: train again with a '
                                 f'lower --learning_rate (this was {settings.learning_rate}) or --dtype=float32')
            if due:
                report(rows, settings.max_steps, meta)
                best_loss, total, seconds = min(best_loss, val_loss), 0.0, 0.0
                total_loss.zero_()
            checkpoint = dict(model=model.state_dict(), optimizer=optimizer.state_dict(), scaler=scaler.state_dict(),
                              config=asdict(config), settings=asdict(settings), meta=meta, step=step, rows=rows,
                              best_loss=best_loss, total_loss=total, seconds=seconds, mixed=mixed, order=order.get_state(),
                              rng=torch.get_rng_state(),
                              cuda_rng=torch.cuda.get_rng_state() if device.type == 'cuda' else None)
            if RANK == 0:
                folder = folder or new_run(settings)
                save(folder, checkpoint, best=due and val_loss == best_loss)
            clock = time.perf_counter() - seconds  # evaluating and saving do not count
        if stop or step == settings.max_steps:
            break

        for group in optimizer.param_groups:
            group['lr'] = learning_rate_at(step, settings)
        idx, targets = windows(train_data, torch.randint(choices, (B,), generator=order), T, device)
        with autocast:
            loss = stepped(idx[mine], targets[mine])[1]
        if WORLD > 1:  # each weighted by its share of the targets that count; times WORLD, since DDP divides their sum by it
            loss = loss * (targets[mine] >= 0).sum() / (targets >= 0).sum() * WORLD
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        total_loss += loss.detach()
        step += 1

    if WORLD > 1:
        dist.barrier()  # until the first has saved
        dist.destroy_process_group()
    if RANK > 0:
        raise SystemExit  # the first does what is left
    if step < settings.max_steps:
        start = ['python'] if WORLD == 1 else ['torchrun', f'--nproc_per_node={WORLD}', '--']
        as_typed = shlex.join if os.name != 'nt' else subprocess.list2cmdline  # quoted for the shell at hand
        raise SystemExit(f'\nstopped after step {step}, all of it saved; this goes on: '
                         + as_typed([*start, sys.argv[0], '--resume', f'--run={folder.name}']))
    accuracy = {}
    for split, data in zip(('val', 'test'), (val_data, *test_data)) if labelled else ():
        tokens, ends, _ = data
        loss, accuracy[split] = evaluate(model, data, settings, device, autocast, len(ends))
        most, label = tokens[ends - 1].long().bincount().max(dim=0)
        print(f'\r{split}, all {len(ends):,} examples, weights of the last step: loss {loss:.3f}, {accuracy[split]:.2%} right; '
              f'who always says {meta["labels"][label - first_label(meta)]}, the most frequent label, has {most / len(ends):.2%}')
    draw_loss(folder, rows, meta['vocab_size'])
    if config.wavelet == 'learnable':
        draw_kernels(folder, model)
    machine = torch.cuda.get_device_name() if device.type == 'cuda' else device.type
    machine += f', {dtype}, torch {torch.__version__}' + (', compiled' if compiled else '')
    machine += f', {WORLD} processes' if WORLD > 1 else ''
    result = dict(settings=asdict(settings), parameters=parameters, machine=machine,
                  checksums=meta['checksums'], mixed=mixed, accuracy=accuracy,
                  loss_by_position=loss_by_position(model, val_data, settings, device, autocast))
    write_aside(folder / 'result.json', json.dumps(result, indent=1).encode())  # last: who has it is finished
    return model, meta, folder, rows


def report(rows, max_steps, meta):
    """One line of progress from the last row of the log."""
    row, guessing = rows[-1], math.log(meta['vocab_size'])
    if row['step'] == 0:
        labels = len(meta.get('labels', []))
        print(f'step 0: loss {row["val_loss"]:.3f}; guessing blindly gives ln({meta["vocab_size"]}) = {guessing:.3f}'
              + (f', and ln({labels}) = {math.log(labels):.3f} once it knows that only labels follow' if labels else ''), flush=True)
        return
    what = f'{row["val_accuracy"]:.1%} right' if 'labels' in meta else in_unit(row['val_loss'], meta['modality'])
    left = round(row['seconds'] * (max_steps - row['step']) / row['step'])
    print(f'step {row["step"]:>5}/{max_steps}  train {row["train_loss"]:.3f}  val {row["val_loss"]:.3f} '
          f'({what})  {row["tokens_per_s"]:>7,.0f} tokens/s  {left // 60}:{left % 60:02} left', flush=True)


def save(folder, checkpoint, best):
    """log.csv, best.pt where this is the best so far, and last.pt; last, so that it is never ahead of the others."""
    log = io.StringIO()
    writer = csv.DictWriter(log, list(checkpoint['rows'][0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(checkpoint['rows'])
    write_aside(folder / 'log.csv', log.getvalue().encode())
    file = io.BytesIO()
    torch.save(checkpoint, file)
    for name in ('best.pt', 'last.pt') if best else ('last.pt',):
        write_aside(folder / name, file.getbuffer())


# ---------------------------------------------------------------------------------------------------------------------
# The pictures, and the comparison of finished runs


def new_figure(*shape, figsize, **options):
    """A figure and its axes, without clutter. matplotlib is imported here, since training itself does not need it."""
    try:
        from matplotlib import rcParams
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SystemExit(f'{error}: pip install -r requirements.txt, then --resume or --compare draws what is missing')
    rcParams.update({'font.size': 12, 'axes.spines.top': False, 'axes.spines.right': False, 'legend.frameon': False})
    figure = Figure(figsize, layout='constrained')
    return figure, figure.subplots(*shape, **options)


def draw_loss(folder, rows, vocab_size):
    """out/<run>/loss.png from the rows of log.csv."""
    figure, axes = new_figure(figsize=(8, 4.5))
    steps = [row['step'] for row in rows]
    axes.axhline(math.log(vocab_size), color='0.6', linestyle=':', label='guessing, ln(vocab_size)')
    axes.plot(steps, [row['train_loss'] for row in rows], color='0.6', label='training (mean since the last row)')
    axes.plot(steps, [row['val_loss'] for row in rows], color='tab:blue', linewidth=2, label='validation')
    axes.set(title=folder.name, xlabel='step', ylabel='loss (nats a token)', xlim=(0, None))
    axes.legend()
    save_figure(figure, folder / 'loss.png')


def draw_kernels(folder, model):
    """out/<run>/kernels.png: the learned kernels beside Haar's. A panel for each window, a colour for each place."""
    from matplotlib.ticker import NullLocator
    windows_used = [kernel.size(2) for kernel in model.averages[0].kernels]
    columns = min(4, len(windows_used))
    figure, axes = new_figure(math.ceil(len(windows_used) / columns), columns, figsize=(14, 7), squeeze=False)
    for level, (f, panel) in enumerate(zip(windows_used, axes.flat)):
        ages = range(f - 1, -1, -1)  # the weight of the newest step stands last
        panel.axhline(1, color='black', linestyle='--', label='Haar')
        for place, average in enumerate(model.averages):
            kernels = average.kernels[level][:, 0].detach().cpu() * f  # (n, f); 1 is Haar
            panel.plot(ages, kernels.T, color=f'C{place}', linewidth=0.4, alpha=0.4)
            panel.plot(ages, kernels.mean(0), color=f'C{place}', linewidth=2, label=f'before block {place + 2}: mean')
        ticks = [0, *(2 ** n for n in range(f.bit_length() - 1))]
        panel.set(title=f'window of {f} steps', xlabel='steps ago')
        panel.set_xscale('symlog', base=2, linthresh=1)  # wide where most is learned, at the last few steps
        panel.set_xticks(ticks, ticks, fontsize=10)
        panel.xaxis.set_minor_locator(NullLocator())
    for panel in axes.flat[len(windows_used):]:
        panel.set_axis_off()
    axes[0, 0].set_ylabel('weight, times window')
    axes[0, 0].legend(fontsize=9)
    save_figure(figure, folder / 'kernels.png')


def label(its, settings):
    """What a run is, in a few words: its wavelet, and in what else it differs from settings."""
    if its.wavelet_max_level == its.block_size.bit_length() - 1:
        its = replace(its, wavelet_max_level=None)  # the longest window that fits, which is what it is if left open
    elsewhere = (*Settings.ALIKE, *Settings.MAY_CHANGE, 'wavelet', 'seed', 'dtype', 'compare')
    usual = {field.name: field.default if field.name.startswith('wavelet_') else getattr(settings, field.name)
             for field in fields(settings) if field.name not in elsewhere
             and not (its.wavelet == 'off' and field.name.startswith('wavelet_'))}  # plain has nothing that they could change
    return ', '.join([its.wavelet, *(f'{name.removeprefix("wavelet_")}={getattr(its, name)}' for name in usual
                                     if getattr(its, name) != usual[name])])


def finished_runs(settings):
    """The finished runs in out/ that compare with settings: {label: {seed: result}}, where result is the run's result.json
    and, under 'log', {step: row} of its log.csv. Of two runs alike the newer counts. Prints what is left out."""
    found, left_out = {}, []
    for path in sorted(Path('out').glob('*/log.csv'), key=lambda path: path.stat().st_mtime):
        try:
            result = json.loads((path.parent / 'result.json').read_text(encoding='utf-8'))
            its = Settings(**result['settings'])
            with open(path, newline='', encoding='utf-8') as file:
                rows = [{name: float(row[name]) for name in COLUMNS} for row in csv.DictReader(file)]
            result['log'] = {int(row['step']): row for row in rows}
            if any(getattr(its, name) != getattr(settings, name) for name in Settings.ALIKE):
                continue
            if missing := {0, its.max_steps} - set(result['log']):
                raise ValueError(f'no row of step {min(missing)}')
            if result.get('mixed'):
                left_out.append(f'{path.parent}: resumed with other --eval_windows')
                continue
            result['loss_by_position'] = {int(n): float(nats) for n, nats in result['loss_by_position']}
            result['parameters'] = int(result['parameters'])
            result['accuracy'] = {split: float(share) for split, share in result['accuracy'].items()}
            contents, name, seed = str(result['checksums']), label(its, settings), int(its.seed)
            found.setdefault(contents, {}).setdefault(name, {})[seed] = result
            newest = contents
        except FileNotFoundError:
            left_out.append(f'{path.parent}: not finished')
        except Exception as error:  # somebody edited it
            left_out.append(f'{path.parent}: damaged ({error})')
    if len(found) > 1:
        left_out.append(f'runs on other contents of data/{settings.dataset} than the newest of them')
    if left_out:
        print('\nleft out of the comparison:', *left_out, sep='\n  ')
    if not found:
        raise SystemExit('out/ holds no finished run with ' + ', '.join(f'--{name}={getattr(settings, name)}'
                                                                        for name in Settings.ALIKE))
    return found[newest]


def averaged(runs):
    """The mean curve of runs that differ in the seed alone, over the steps and positions that all of them have."""
    steps = sorted(set.intersection(*(set(run['log']) for run in runs)))
    losses, seconds = (np.array([[run['log'][step][name] for step in steps] for run in runs])  # (runs, steps) each
                       for name in ('val_loss', 'seconds'))
    position = sorted(set.intersection(*(set(run['loss_by_position']) for run in runs)))
    by_position = np.mean([[run['loss_by_position'][n] for n in position] for run in runs], axis=0)
    return dict(seeds=len(runs), steps=steps, loss=losses.mean(0), low=losses.min(0), high=losses.max(0), seconds=seconds.mean(0),
                parameters=runs[0]['parameters'], accuracy=[run['accuracy'].get('test') for run in runs],
                position=position, by_position=by_position)


def crossing(steps, losses, target):
    """The step at which losses first falls to target, interpolated between two rows; None if it never does."""
    for n, loss in enumerate(losses):
        if loss <= target:
            if n == 0:
                return steps[0]
            share = (losses[n - 1] - target) / (losses[n - 1] - loss)
            return steps[n - 1] + share * (steps[n] - steps[n - 1])
    return None


def reached(curve, target):
    """The step and the training time in seconds at which a curve first comes down to target; None, None if never."""
    step = crossing(curve['steps'], curve['loss'], target)
    return (None, None) if step is None else (step, float(np.interp(step, curve['steps'], curve['seconds'])))


def ratio(a, b):
    return f'{a / b:.2f}' if b else '-'


def what_is_compared(settings):
    return f'{settings.dataset}, {settings.size} size, T = {settings.block_size}, {settings.max_steps:,} steps'


def draw_comparison(settings, curves, plain):
    """out/<dataset>.png: the whole curves, and the loss against the position in the context."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
    figure, (left, right) = new_figure(1, 2, figsize=(14, 6), width_ratios=(3, 2))
    title = what_is_compared(settings)
    for n, (name, curve) in enumerate(curves.items()):
        style = dict(color=f'C{1 + n % 9}', linewidth=1.5, linestyle='-' if n < 9 else '--')  # there are nine such colours
        if name in ('off', 'on'):
            style = dict(color='black' if name == 'off' else 'C0', linewidth=2.5)
        steps, losses = curve['steps'][1:], curve['loss'][1:]  # without step 0, which a logarithm cannot show
        left.plot(steps, losses, label=f'{losses[-1]:.3f}  {name}', **style)
        left.fill_between(steps, curve['low'][1:], curve['high'][1:], color=style['color'], alpha=0.2, linewidth=0)
        if name in ('off', 'on', next(iter(curves))):
            right.plot(curve['position'], curve['by_position'], marker='o', label=name, **style)
    if plain and 'on' in curves:
        target = plain['loss'][-1]
        first, step = (reached(curve, target)[0] for curve in (plain, curves['on']))
        if step and step < first:
            left.plot([step, first], [target, target], 'o:', color='C0')
            title += f"\non has plain's final loss after {ratio(first, step)} times fewer steps"
    left.set(title=title, xlabel='step', ylabel='validation loss (nats a token)', xscale='log', yscale='log')
    left.legend(title='at the end', loc='lower left', fontsize=12 if len(curves) < 7 else 9)  # where no curve goes
    left.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter='{x:g}', minor_locator=NullLocator())
    left.yaxis.set(major_locator=MaxNLocator(8), major_formatter='{x:g}', minor_locator=NullLocator())
    right.set(title='at the end, by position', xlabel='tokens that the prediction sees, in bins up to this', xscale='log')
    right.set_xticks(curve['position'], curve['position'], minor=False)
    right.xaxis.set(minor_locator=NullLocator())
    right.legend()
    save_figure(figure, Path('out') / f'{settings.dataset}.png')


def draw_highest_level(settings, curves):
    """out/<dataset>-levels.png: the final loss against the highest level, where at least three runs of on differ in it."""
    named = {'off': 0, 'on': settings.block_size.bit_length() - 1}  # the plain GPT averages over 2^0 = 1 step
    named |= {f'on, max_level={level}': level for level in range(1, named['on'])}
    points = {named[name]: curve for name, curve in curves.items() if name in named}
    levels = sorted(points)
    if sum(level > 0 for level in levels) < 3:
        return
    figure, axes = new_figure(figsize=(8, 4.5))
    axes.plot(levels, [points[level]['loss'][-1] for level in levels], 'o-')
    for level in levels:
        axes.vlines(level, points[level]['low'][-1], points[level]['high'][-1], color='C0', linewidth=8, alpha=0.3)  # the seeds
    axes.set(title=what_is_compared(settings) + '\nbars: the range of several seeds', ylabel='final validation loss (nats a token)',
             xlabel='the longest window, in steps (1: the plain GPT)', xticks=levels, xticklabels=[2 ** level for level in levels])
    save_figure(figure, Path('out') / f'{settings.dataset}-levels.png')
    print(f'the loss against the longest window: out/{settings.dataset}-levels.png')


def compare(settings):
    """Print the table of all finished runs that compare with settings, and draw out/<dataset>.png, perhaps -levels.png.

    A run's speed-up is the step (or the training time) at which the plain run first has its own final loss, divided by
    the step (or time) at which this run first has it. So the plain run's is 1.00. Runs of several seeds: their mean curve.
    """
    found = finished_runs(settings)
    curves = {name: averaged(list(runs.values())) for name, runs in found.items()}
    curves = dict(sorted(curves.items(), key=lambda item: item[1]['loss'][-1]))  # the best first
    machines = sorted({str(run.get('machine')) for runs in found.values() for run in runs.values()})
    if len(machines) > 1:
        print('\nthese runs were trained in several ways, so their times do not compare:', *machines, sep='\n  ')
        curves = {name: dict(curve, seconds=curve['seconds'] * math.nan) for name, curve in curves.items()}
    plain = curves.get('off')
    width = max(map(len, curves))
    print(f'\n{what_is_compared(settings)}; loss in nats a token\n'
          f'{"":{width}}  seeds  validation loss                 as low as plain at the end  times sooner in     added    time\n'
          f'{"":{width}}         final (of the seeds)    best  after                         steps   time  parameters  a step')
    for name, curve in curves.items():
        seeds = f'({curve["low"][-1]:.3f}-{curve["high"][-1]:.3f})' if curve['seeds'] > 1 else ''
        line = f'{name:{width}}  {curve["seeds"]:>5}  {curve["loss"][-1]:6.3f} {seeds:15}  {curve["loss"].min():6.3f}  '
        if plain:
            (first, first_time), (step, its_time) = (reached(c, plain['loss'][-1]) for c in (plain, curve))
            if step is None:
                line += f'{"never":25}  {"":6} {"":6}'
            else:
                line += f'{step:>7,.0f} steps, {its_time:>7,.0f} s {ratio(first, step):>8} {ratio(first_time, its_time):>6}'
            line += f' {curve["parameters"] - plain["parameters"]:>+11,}'
            line += f' {ratio(curve["seconds"][-1], plain["seconds"][-1]):>7}'
        if None not in curve['accuracy']:
            line += f'  {np.mean(curve["accuracy"]):.1%} right ({min(curve["accuracy"]):.1%}-{max(curve["accuracy"]):.1%})'
        print(line.rstrip())
    if not plain:
        others = any(name.startswith('off, ') for name in curves)
        print('there is no plain run to compare with: train one with --wavelet=off'
              + (', or give --compare the options that stand behind "off" above' if others else ''))
    draw_comparison(settings, curves, plain)
    print(f'the curves: out/{settings.dataset}.png')
    draw_highest_level(settings, curves)


def main(settings):
    if settings.compare:
        return compare(settings)
    try:
        with signals_noted() as noted:
            model, meta, folder, rows = train(settings, noted)
    except (RuntimeError, MemoryError) as error:
        if not (isinstance(error, MemoryError) or re.search("out of memory|not enough memory|can't allocate|ALLOC_FAILED", str(error))):
            raise
        raise SystemExit('the memory is not enough: lower --batch_size first, then --block_size, --n_embd or --n_layer')
    if meta['modality'] == 'text':
        model.cpu().eval()  # one token at a time is no work for a GPU
        if hasattr(sys.stdout, 'reconfigure'):
            sys.stdout.reconfigure(encoding='utf-8')  # whatever the console thinks it is
        characters = meta['characters']
        prompt = torch.tensor([[max(0, characters.find('\n'))]])
        print('a sample:', '-' * 60, decode_text(model.generate(prompt, 300, temperature=0.8)[0].tolist(), characters),
              '-' * 60, sep='\n')
    print(f'{folder}: validation loss {rows[-1]["val_loss"]:.3f} after {rows[-1]["step"]} steps and {rows[-1]["seconds"]:.0f} '
          f's of training; see log.csv and loss.png there. {"Its answers" if "labels" in meta else "More of it"}: '
          f'python sample.py --run={folder.name}')
    result = json.loads((folder / 'result.json').read_text())
    if result['mixed']:
        print('it is compared with no other run, since --eval_windows changed when it was resumed')
    else:
        compare(Settings(**result['settings']))


if __name__ == '__main__':
    try:
        main(settings)
    except KeyboardInterrupt:  # a second one, or one before or after the training
        raise SystemExit('\nstopped at once; what out/ holds is the state of the last line above')
    except BrokenPipeError:  # head, or less
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where Python may flush what is left
        raise SystemExit('stopped: nobody reads any longer what is printed; --resume goes on from what out/ holds')
