"""
Train a GPT with causal averages between or in its blocks, or without, and compare them.

    python train.py                         a wavelet GPT on Python's own source, on a laptop
    python train.py --wavelet=off           the plain GPT, everything else equal
    python train.py --size=paper            10 layers, a context of 512: wants a GPU
    python train.py --resume                go on with the newest run, where it was broken off
    python train.py --compare               compare the finished runs once more
    torchrun --nproc_per_node=2 -- train.py two processes share every batch

All of a run goes to out/<run>/, its comparison with others of its settings to out/<dataset>.png.
"""

import argparse
import io
import math
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from prepare_data import prepare_stdlib, read_meta, read_tokens, write_aside
from sample import load_checkpoint, save_picture
from wavelet_gpt import GPT, GPTConfig

# what --size stands for
SIZES = dict(
    laptop=dict(n_layer=4, n_head=4, n_embd=128, block_size=256, batch_size=16,
                max_steps=600, eval_interval=50),
    paper=dict(n_layer=10, n_head=8, n_embd=128, block_size=512, batch_size=16,
               max_steps=10000, eval_interval=250))
MAY_CHANGE = ['device', 'compile', 'eval_interval', 'resume', 'compare']  # in a resumed run
MAY_DIFFER = [*MAY_CHANGE, 'run', 'seed', 'size']  # in compared runs; also wavelet*

# ---- settings and machine ----
def read_settings():
    """The settings of the command line, and with --resume the checkpoint, which has its own."""
    parser = argparse.ArgumentParser(description=__doc__, usage='train.py [--name=value ...]',
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--dataset', default='stdlib', type=lambda path: Path(path).name, help='in data/')
    add('--wavelet', default='on', choices=['on', 'off', 'learnable', 'ema', 'past'])
    add('--wavelet_fraction', type=float, default=0.5, help='of the coordinates are averaged')
    add('--wavelet_min_level', type=int, default=1, help='shortest window: 2^this (past: half)')
    add('--wavelet_max_level', type=int, help='the longest [what fits into block_size]')
    add('--size', default='laptop', choices=SIZES, help='sets the next seven [laptop]')
    add('--n_layer', type=int, help='blocks [4, paper: 10]')
    add('--n_head', type=int, help='attention heads [4, paper: 8]')
    add('--n_embd', type=int, help='C, embedding coordinates [128]')
    add('--block_size', type=int, help='T, the context [256, paper: 512]')
    add('--batch_size', type=int, help='sequences in a step [16]')
    add('--max_steps', type=int, help='steps of training [600, paper: 10000]')
    add('--eval_interval', type=int, help='steps between two evaluations [50, paper: 250]')
    add('--learning_rate', type=float, default=4e-3, help='the highest, see get_lr [0.004]')
    add('--dropout', type=float, default=0.0, help='0 if data are seen about once')
    add('--bias', default='off', choices=['on', 'off'], help='in Linear and LayerNorm layers')
    add('--seed', type=int, default=1337, help='of the weights and of the batches')
    add('--run', type=lambda path: Path(path).name, help='its folder in out/ [<dataset>-<wavelet>]')
    add('--device', default='auto', choices=['auto', 'cpu', 'cuda', 'mps'])
    add('--dtype', default='auto', choices=['auto', 'float32', 'bfloat16', 'float16'])
    add('--compile', default='auto', choices=['auto', 'on', 'off'], help='torch.compile')
    add('--resume', action='store_true', help='go on with --run, or with the newest run')
    add('--compare', action='store_true', help='compare finished runs')
    typed = parser.parse_args()
    # what is typed counts, then what the checkpoint has, then what --size says
    checkpoint, kept = None, {}
    if typed.resume:
        found = sorted(Path('out').glob('*/last.pt'), key=os.path.getmtime)
        found = [path for path in found if typed.run in (None, path.parent.name)]
        if not found:
            parser.error(f'there is no out/{typed.run or "*"}/last.pt to go on with')
        checkpoint, _ = load_checkpoint(found[-1])
        kept = dict(checkpoint['settings'], run=found[-1].parent.name)
    parser.set_defaults(**SIZES[typed.size])
    args = parser.parse_args(namespace=argparse.Namespace(**kept))
    for name in kept:
        if getattr(args, name) != kept[name] and name not in MAY_CHANGE:
            parser.error(f'{found[-1]} has {name}={kept[name]}, and a run keeps its settings: '
                         f'leave out --{name}, or say which --run')
    for name in [*SIZES[args.size], 'learning_rate']:
        if not getattr(args, name) > 0:
            parser.error(f'--{name}={getattr(args, name)} must be more than 0')
    # rows of labelled data are read whole: a cut one has no label
    if Path('data', args.dataset, 'meta.json').exists():
        width = read_meta(args.dataset).get('width', args.block_size + 1)
        if typed.block_size not in (None, width - 1):
            parser.error(f'data/{args.dataset} needs --block_size={width - 1}, or none')
        args.block_size = width - 1
    return args, checkpoint

def start_processes(args):
    """The number of this process, and how many there are: 0 and 1 without torchrun."""
    if not dist.is_torchelastic_launched():
        return 0, 1
    gpu = torch.cuda.is_available() and args.device != 'cpu'
    dist.init_process_group('nccl' if gpu else 'gloo')  # for GPUs, or for CPUs
    if gpu:
        torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
    if dist.get_rank() > 0:
        sys.stdout = open(os.devnull, 'w')  # the first one speaks for all
    return dist.get_rank(), dist.get_world_size()

def choose_device(args):
    """The device, the dtype of matrix products, whether to compile. Prints them."""
    device, dtype, compiled = args.device, args.dtype, args.compile
    if device == 'auto':
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
    if not getattr(torch, device).is_available():
        raise SystemExit(f'--device={device}: PyTorch finds none here, use --device=cpu')
    if dtype == 'auto':
        dtype = 'float32'
        if device == 'cuda':  # older GPUs only emulate bfloat16
            dtype = 'bfloat16' if torch.cuda.get_device_capability() >= (8, 0) else 'float16'
    if device == 'mps' and dtype != 'float32':  # PyTorch issue 195910
        raise SystemExit(f'--dtype={dtype}: on mps attention may see the future, use float32')
    if compiled == 'auto':
        compiled = 'on' if device == 'cuda' else 'off'
    print(f'device {device}, {dtype}, compile {compiled} (CUDA: {torch.cuda.is_available()})')
    return torch.device(device), getattr(torch, dtype), compiled == 'on'

def compile_or_not(model, batch, autocast):
    """torch.compile(model), if a trial step works on this machine, else the model as it is."""
    try:
        compiled = torch.compile(model)
        with autocast:
            compiled(*batch)[1].backward()
        return compiled
    except Exception as error:  # no C compiler, an old GPU: train without
        print(f'going on without torch.compile: {str(error)[:99]!r}')
        return model

# ---- the data ----
class Data:
    """The tokens of data/<dataset>, and how sequences of T steps are drawn from them."""
    def __init__(self, args, device):
        meta = self.meta = read_meta(args.dataset)
        self.T, self.B, self.device = args.block_size, args.batch_size, device
        # each a stream (N,), or rows (rows, T + 1): sequence, label, padding
        self.splits = {name: read_tokens(args.dataset, name, meta) for name in meta['splits']}
        # labels are the last ids of the vocabulary, and then the only targets
        self.labels = meta.get('labels', [])
        self.first_label = meta['vocab_size'] - len(self.labels) if self.labels else 0
        if min(self.count('train'), self.count('val')) < 1:
            raise SystemExit(f'train.bin or val.bin of data/{args.dataset} is shorter than a '
                             f'sequence: lower --block_size={self.T}, or prepare more data')

    def count(self, split):  # of sequences: of rows, or of starts with T + 1 tokens
        return len(self.splits[split]) - (0 if self.labels else self.T)

    def get_batch(self, split, starts):
        """starts (B,) -> x (B, T), and what follows, y (B, T), -1 where it does not count."""
        starts = starts.numpy()
        if not self.labels:
            starts = starts[:, None] + np.arange(self.T + 1)  # (B, T + 1)
        rows = torch.from_numpy(self.splits[split][starts].astype(np.int64))  # (B, T + 1)
        if self.device.type == 'cuda':
            rows = rows.pin_memory()  # else the copy would wait for the GPU
        rows = rows.to(self.device, non_blocking=True)
        x, y = rows[:, :-1], rows[:, 1:]
        return x, y.masked_fill(y < self.first_label, -1)

@torch.no_grad()
def evaluate(model, data, split, autocast, number=None):
    """The loss and the share of right answers over evenly spread sequences, always the same."""
    number = number or (min(1000, data.count(split)) if data.labels else 128)
    starts = torch.linspace(0, data.count(split) - 1, number, dtype=torch.double).long()
    total, right, count = 0.0, 0, 0
    model.eval()
    for some in starts.split(data.B):
        x, y = data.get_batch(split, some)
        with autocast:
            logits, loss = model(x, y)
        n = (y >= 0).sum().item()
        total += loss.item() * n
        right += (logits.argmax(dim=-1) == y).sum().item()
        count += n
    model.train()
    return total / count, right / count

# ---- the loop ----
def get_lr(step, args):
    """A linear warm-up, then a cosine from learning_rate down to a tenth of it."""
    warmup = min(100, args.max_steps // 6)
    if step < warmup:
        return args.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / (args.max_steps - warmup)
    return args.learning_rate * (0.55 + 0.45 * math.cos(math.pi * progress))

def new_run(args):
    """Make out/<run>/, or take an empty --run; its name. A default that is there gets a number."""
    base = f'{args.dataset}-{args.wavelet}'
    names = [base, *(f'{base}-{n}' for n in range(2, 1000))]
    name = args.run or next(name for name in names if not Path('out', name).exists())
    try:
        Path('out', name).mkdir(parents=True, exist_ok=not any(Path('out', name).glob('*')))
    except OSError as error:
        raise SystemExit(f'out/{name}: {error.strerror}; '
                         'if it is there, choose another --run or add --resume')
    return name

def report(row, args, labelled):
    """Print a line of progress from the newest row of the log."""
    step, loss = row['step'], row['val_loss']
    also = f'{row["val_accuracy"]:.1%} right' if labelled else f'{loss / math.log(2):.3f} bits'
    to_come = (args.max_steps - step) * args.batch_size * args.block_size  # tokens
    left = round(to_come / (row['tokens_per_s'] or math.inf))
    pace = f'{row["tokens_per_s"]:>7,.0f} tokens/s  {left // 60}:{left % 60:02} left'
    print(f'step {step:>5}/{args.max_steps}  train {row["train_loss"]:.3f}  '
          f'val {loss:.3f} ({also})  {pace if step else ""}', flush=True)

def save(checkpoint):
    """Write best.pt, log.csv, and last.pt at last: it is never ahead of the others."""
    folder, rows = Path('out', checkpoint['settings']['run']), checkpoint['rows']
    file = io.BytesIO()
    torch.save(checkpoint, file)
    if rows[-1]['val_loss'] <= min(row['val_loss'] for row in rows):
        write_aside(folder / 'best.pt', file.getvalue())
    lines = [','.join(rows[0]), *(','.join(map(str, row.values())) for row in rows)]
    write_aside(folder / 'log.csv', '\n'.join([*lines, '']).encode())
    write_aside(folder / 'last.pt', file.getvalue())

def final_accuracy(model, data, autocast):
    """The share of right labels in all of val and test, printed beside a blind guess's."""
    accuracy = {}
    for split, rows in data.splits.items():
        if split != 'train':
            _, accuracy[split] = evaluate(model, data, split, autocast, len(rows))
            guess = np.bincount(rows[rows >= data.first_label]).max() / len(rows)
            print(f'{split}: {accuracy[split]:.1%} right; the most frequent label: {guess:.1%}')
    return accuracy

def train(args, checkpoint=None):
    """Train, and leave all in out/<args.run>/. Returns the last checkpoint and the model."""
    rank, world = start_processes(args)
    device, dtype, compiled = choose_device(args)
    if rank == 0 and args.dataset == 'stdlib' and not Path('data/stdlib/meta.json').exists():
        prepare_stdlib()
    if world > 1:
        dist.barrier()  # until it is prepared
    data = Data(args, device)
    if checkpoint and checkpoint['meta'] != data.meta:
        raise SystemExit(f'data/{args.dataset} is not what out/{args.run} was trained on')
    B, T, V = args.batch_size, args.block_size, data.meta['vocab_size']
    if B % world:
        raise SystemExit(f'--batch_size={B} must be a multiple of the {world} processes')
    mine = slice(rank * B // world, (rank + 1) * B // world)  # its part of a batch

    # the model, and what is trained: the same, perhaps compiled or shared
    torch.manual_seed(args.seed)  # of the weights
    torch.set_float32_matmul_precision('high')  # TF32, on GPUs that have it
    shape = {name: vars(args).get(name) for name in GPTConfig.__dataclass_fields__}
    try:
        config = GPTConfig(**dict(shape, vocab_size=V, bias=args.bias == 'on'))
    except (ValueError, AssertionError) as error:
        raise SystemExit(str(error))
    trained = model = GPT(config).to(device)
    parameters = sum(p.numel() for p in model.parameters())
    print(f'{parameters:,} parameters; guessing gives a loss of ln({V}) = {math.log(V):.3f}')
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    if compiled:
        batch = data.get_batch('val', torch.zeros(B, dtype=torch.long)[mine])
        trained = compile_or_not(model, batch, autocast)
    if world > 1:
        trained = torch.nn.parallel.DistributedDataParallel(trained)  # averages the gradients

    # only matrices decay; order draws the batches, and nothing else
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    groups = [dict(params=matrices, weight_decay=0.1),
              dict(params=others, weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    order = torch.Generator().manual_seed(args.seed)

    # where it begins
    if checkpoint:
        model.load_state_dict(checkpoint['model'])
        optimizer.load_state_dict(checkpoint['optimizer'])
        if checkpoint['scaler']:  # empty where it began without float16
            scaler.load_state_dict(checkpoint['scaler'])
        order.set_state(checkpoint['order'])
    elif rank == 0:
        args.run = new_run(args)
    rows = checkpoint['rows'] if checkpoint else []
    step = rows[-1]['step'] if rows else 0
    total = torch.zeros((), device=device)  # of the training loss since the last row
    begin = time.perf_counter()

    while True:
        # set the learning rate of this step
        for group in optimizer.param_groups:
            group['lr'] = get_lr(step, args)

        # once in a while evaluate, save and print; not what was just resumed
        due = step % args.eval_interval == 0 or step == args.max_steps
        if due and not (rows and rows[-1]['step'] == step):
            if world > 1:
                dist.all_reduce(total.div_(world))  # the mean over the processes
            steps = step - rows[-1]['step'] if rows else 0  # since the last row
            train_loss = total.item() / max(steps, 1)  # this waits for a GPU
            took = time.perf_counter() - begin
            if step == 0:
                train_loss, _ = evaluate(model, data, 'train', autocast)
            val_loss, val_accuracy = evaluate(model, data, 'val', autocast)
            if not math.isfinite(train_loss + val_loss):
                raise SystemExit(f'the loss is no number at step {step}, and that is not saved: '
                                 f'try a --learning_rate below {args.learning_rate}')
            rows.append(dict(step=step, train_loss=train_loss, val_loss=val_loss,
                             tokens_per_s=steps * B * T / took,
                             seconds=rows[-1]['seconds'] + took if rows else 0.0))
            if data.labels:
                rows[-1]['val_accuracy'] = val_accuracy
            checkpoint = dict(
                model=model.state_dict(), optimizer=optimizer.state_dict(),
                scaler=scaler.state_dict(), order=order.get_state(),
                config=vars(config), settings=vars(args), meta=data.meta, parameters=parameters,
                step=step, rows=rows)
            if data.labels and step == args.max_steps:
                checkpoint['accuracy'] = final_accuracy(model, data, autocast)
            if rank == 0:
                save(checkpoint)
            report(rows[-1], args, data.labels)
            total.zero_()
            begin = time.perf_counter()
        if step == args.max_steps:
            break

        # a step: draw a batch, forward, backward, update
        starts = torch.randint(data.count('train'), (B,), generator=order)  # (B,)
        x, y = data.get_batch('train', starts[mine])
        torch.manual_seed(args.seed + world * step + rank)  # a resumed run drops the same
        optimizer.zero_grad(set_to_none=True)
        with autocast:
            _, loss = trained(x, y)
        # float16 holds no small gradients: scaled up, and down for the clipping
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        total += loss.detach()
        step += 1

    if world > 1:
        dist.destroy_process_group()
    if rank > 0:
        sys.exit()  # the first one does the rest
    return checkpoint, model

# ---- the comparison ----
def finished_runs(settings, meta):
    """{name: checkpoint} of all finished runs with these settings and data, the best first."""
    wanted = {k: v for k, v in settings.items()
              if k not in MAY_DIFFER and 'wavelet' not in k}
    runs, names = {}, sorted(path.parent.name for path in Path('out').glob('*/last.pt'))
    for name in names:
        with suppress(Exception):  # of a damaged file, or one from an earlier version
            run = torch.load(Path('out', name, 'last.pt'), map_location='cpu', weights_only=True)
            alike = all(run['settings'][k] == wanted[k] for k in wanted)
            alike &= run['meta']['checksums'] == meta['checksums']
            alike &= 'parameters' in run and run['rows'][-1]['step'] == wanted['max_steps']
            if alike:
                runs[name] = run
    left_out = [name for name in names if name not in runs]
    if left_out:
        print('not compared (unfinished, damaged, or other settings or data):', ', '.join(left_out))
    return dict(sorted(runs.items(), key=lambda item: item[1]['rows'][-1]['val_loss']))

def draw_curves(figure, curves, title='validation loss'):
    """curves = {name: (rows, column)} on logarithmic axes, so without step 0."""
    axes = figure.subplots()
    for name, (rows, column) in curves.items():
        losses = [row[column] for row in rows[1:]]
        axes.plot([row['step'] for row in rows[1:]], losses, label=f'{losses[-1]:.3f}  {name}')
    axes.set(title=title, xlabel='step', ylabel='loss (nats a token)', xscale='log', yscale='log')
    axes.legend()

def compare(settings, meta):
    """Print a table of the finished runs, and draw their curves into out/<dataset>.png."""
    runs = finished_runs(settings, meta)
    if not runs:
        raise SystemExit('out/ holds no finished run with these settings')
    # the best plain run sets a mark, its final loss: when is each as low?
    plain = [name for name in runs if runs[name]['settings']['wavelet'] == 'off']
    mark = (plain or list(runs))[0]
    loss = runs[mark]['rows'][-1]['val_loss']
    low = {name: [row for row in run['rows'][1:] if row['val_loss'] <= loss]
           for name, run in runs.items()}
    print(f'final loss    best  {"as low as " + mark:>22}  times fewer  ms a step    added  run')
    for name, run in runs.items():
        last, first, fewer = run['rows'][-1], 'never', ''
        if low[name]:
            first = f'{low[name][0]["step"]} steps, {low[name][0]["seconds"]:.0f} s'
            fewer = f'{low[mark][0]["step"] / low[name][0]["step"]:.2f}'
        ms = 1000 * last['seconds'] / last['step']
        added = run['parameters'] - runs[mark]['parameters']
        right = f', {list(run["accuracy"].values())[-1]:.1%} right' if 'accuracy' in run else ''
        print(f'{last["val_loss"]:10.3f}  {min(row["val_loss"] for row in run["rows"]):6.3f}  '
              f'{first:>22}  {fewer:>11}  {ms:9.0f}  {added:+7,}  {name}{right}', flush=True)
    curves = {name: (run['rows'], 'val_loss') for name, run in runs.items()}
    save_picture(Path('out', settings['dataset'] + '.png'), lambda f: draw_curves(f, curves))

def main():
    args, checkpoint = read_settings()
    try:
        if args.compare:
            return compare(vars(args), read_meta(args.dataset))
        checkpoint, _ = train(args, checkpoint)
        curves = {name: (checkpoint['rows'], name) for name in ('train_loss', 'val_loss')}
        save_picture(Path('out', args.run, 'loss.png'), lambda f: draw_curves(f, curves, args.run))
        compare(checkpoint['settings'], checkpoint['meta'])
        print(f'To see what it does: python sample.py --run={args.run}', flush=True)
    except (KeyboardInterrupt, BrokenPipeError):  # or | head has read enough
        sys.stdout = open(os.devnull, 'w')
        if not Path('out', args.run or '', 'last.pt').exists():
            raise SystemExit('\nstopped')
        raise SystemExit('\nstopped; what is reported above is saved. To go on: '
                         f'python train.py --resume --run={args.run}')
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and 'allocate' not in str(error):
            raise
        raise SystemExit('out of memory: lower --batch_size or --n_embd')

if __name__ == '__main__':
    main()
