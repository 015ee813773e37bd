"""
Print the tables of results.md and draw its pictures, from runs.csv or from your own runs.

    python assets/figures.py              assets/runs.csv, the pictures go to assets/
    python assets/figures.py --out=out    your finished runs in out/, the pictures go there
    python assets/figures.py --add out/NAME --machine="AMD EPYC 2.6 GHz"

The last one appends runs to runs.csv. That file has a row an evaluation, losses in nats a
token. An empty max_level is the longest window that fits into the context. Of a run with
labels, a last row of split test has the final accuracy. Seeds are averaged. Dropout is for
data that are few, and soon known by heart: there the lowest loss so far counts, not the last.
"""

import argparse
import csv
import math
import subprocess
import sys
from collections import Counter, namedtuple
from pathlib import Path

import numpy as np
import torch
from matplotlib import ticker

ASSETS = Path(__file__).resolve().parent
sys.path.insert(0, str(ASSETS.parent))
from sample import load_checkpoint, save_picture

RUNS = ASSETS / 'runs.csv'
# what is equal in runs that are compared
Setup = namedtuple('Setup', 'data data_sha256 n_layer n_head n_embd block_size batch_size '
                            'dropout max_steps learning_rate')
ROMAN = ' I II III IV V VI VII VIII IX X XI XII'.split(' ')
FOUR = ['plain GPT', "the paper's", 'levels I to III', 'past']
FORMS = [*FOUR, 'past between blocks']  # the last one is `past` in commit 5e073ae
PICTURES = {  # file: title, setup
    'curves.png': ("Code, best rates: after 10,000 steps the plain GPT meets the paper's averages",
                   dict(max_steps=10000, learning_rate=0)),
    'paper.png': ("English, 10 layers, a context of 512: averages need about half of the steps",
                  dict(data='english', n_layer=10, block_size=512, max_steps=2000,
                       learning_rate=0))}

# ---- the runs ----
def read_csv():
    return list(csv.DictReader(RUNS.read_text(encoding='utf-8').splitlines()))

def checkpoint_rows(folder, commit='', machine='', threads=''):
    """The rows of runs.csv, with more columns, of a finished run, from its last.pt."""
    checkpoint, _ = load_checkpoint(folder / 'last.pt')
    settings, rows = checkpoint['settings'], checkpoint['rows']
    if rows[-1]['step'] < settings['max_steps']:
        raise SystemExit(f'{folder} is not finished: python train.py --resume')
    run = {name.removeprefix('wavelet_'): value for name, value in settings.items()}
    run.update(run=folder.name, data=run['dataset'], parameters=checkpoint['parameters'],
               data_sha256=checkpoint['meta']['checksums']['train'][:12],
               commit=commit, machine=machine, threads=threads)

    rows = [{name: round(value, 5) for name, value in row.items()} for row in rows]
    rows = [dict(row, split='val', seconds=round(row['seconds'], 1)) for row in rows]
    if 'test' in checkpoint.get('accuracy', {}):
        accuracy = round(checkpoint['accuracy']['test'], 5)
        rows.append(dict(step=rows[-1]['step'], split='test', val_accuracy=accuracy))
    return [{**run, **row} for row in rows]

def read_out(out):
    """The rows of all finished runs in a folder such as out/."""
    rows = []
    for path in sorted(out.glob('*/last.pt')):
        try:
            rows += checkpoint_rows(path.parent)
        except (Exception, SystemExit):
            print(f'{path} is left out: unfinished, or of an earlier version')
    return rows

def add_runs(folders, machine, threads):
    """Append finished runs to runs.csv."""
    command = ['git', 'rev-parse', '--short', 'HEAD']
    commit = subprocess.check_output(command, cwd=ASSETS, text=True).strip()
    known, rows = read_csv(), []
    for folder in folders:
        if folder.name in [row['run'] for row in known]:
            raise SystemExit(f'runs.csv has another {folder.name}: rename {folder}')
        rows += checkpoint_rows(folder, commit, machine, threads)
    with open(RUNS, 'a', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, known[0], extrasaction='ignore', lineterminator='\n')
        writer.writerows(rows)

# ---- from runs to curves ----
def model_name(wavelet, fraction, first, last, longest):
    """What a model is called in tables and pictures; first, last, longest are levels."""
    if wavelet == 'off':
        return 'plain GPT'
    name = f'levels {ROMAN[first]} to {ROMAN[last]}'
    if first == last:
        name = f'level {ROMAN[first]} alone'
    if (first, last) == (1, longest):
        name = "the paper's" if wavelet == 'on' else wavelet
    elif wavelet != 'on':
        name = f'{wavelet}, {name}'
    return name if fraction == 0.5 else f'{name}, of {fraction:.0%} of the coordinates'

def group_runs(rows):
    """Rows -> {setup: {model: {run: {step: val_loss}}}}, the setups in order, best rates too.

    A run with labels also has 'right', the share of the test data that it labels right.
    """
    groups = {}
    for row in rows:
        numbers = [float(row[name]) for name in Setup._fields[2:]]
        setup = Setup(row['data'], row['data_sha256'], *numbers)
        longest = int(math.log2(setup.block_size))
        model = model_name(row['wavelet'], float(row['fraction']), int(row['min_level']),
                           int(row['max_level'] or longest), longest)
        runs = groups.setdefault(setup, {}).setdefault(model, {})
        run = runs.setdefault(row['run'], {})
        if row['split'] == 'test':
            run['right'] = float(row['val_accuracy'])
            continue
        loss = float(row['val_loss'])
        run[int(row['step'])] = min([loss, *run.values()]) if setup.dropout else loss

    # where several rates were tried, also each model at its best one, that of its lowest run:
    # a setup of rate 0
    rates = Counter(setup._replace(learning_rate=0) for setup in groups)
    for setup, models in list(groups.items()):
        any_rate = setup._replace(learning_rate=0)
        for name in models if rates[any_rate] > 1 else []:
            best = groups.setdefault(any_rate, {})
            best[name] = min(models[name], best.get(name, models[name]),
                             key=lambda runs: curves(runs)[1][:, -1].min())
    return dict(sorted(groups.items()))

def find(groups, data='stdlib', n_layer=4, block_size=256, **wanted):
    wanted.update(data=data, n_layer=n_layer, block_size=block_size)
    return [setup for setup in groups if wanted.items() <= setup._asdict().items()]

def curves(runs):
    """Runs of several seeds -> steps (N,) that all have, losses (runs, N), their mean (N,)."""
    steps = sorted(set.intersection(*(set(run) for run in runs.values())) - {'right'})
    losses = np.array([[run[step] for step in steps] for run in runs.values()])
    return np.array(steps), losses, losses.mean(axis=0)

def best_last(models):
    return sorted(models, key=lambda name: -curves(models[name])[2][-1])

def steps_to(mark, steps, losses):
    """When a curve, (N,) each, first comes down to mark, between evaluations; else inf."""
    below = np.flatnonzero(losses <= mark)
    if len(below) == 0:
        return math.inf
    n = max(below[0], 1)
    return np.interp(mark, losses[[n, n - 1]], steps[[n, n - 1]])

# ---- tables ----
def cell(models, name, step):
    """As '0.992 ± 0.009 (2.53)': mean loss, half the range of the seeds, times fewer steps.

    As '1.561 (1.90), 40.9%' where there are labels: so many of the test data are labelled right.
    """
    if name not in models:
        return ''
    steps, losses, mean = curves(models[name])
    n = list(steps).index(step)
    text = f'{mean[n]:.3f}'
    if len(losses) > 1:
        text += f' ± {np.ptp(losses[:, n]) / 2:.3f}'
    right = [run['right'] for run in models[name].values() if 'right' in run]
    share = f', {np.mean(right):.1%}' if right else ''
    if name == 'plain GPT' or 'plain GPT' not in models:
        return text + share

    # the plain GPT's loss at this step: when did each come down to it?
    plain_steps, _, plain = curves(models['plain GPT'])
    mark = plain[list(plain_steps).index(step)]
    fewer = steps_to(mark, plain_steps, plain) / steps_to(mark, steps, mean)
    return text + (f' ({fewer:.2f})' if fewer else ' (never)') + share

def setup_name(setup):
    rate = f'rate {setup.learning_rate:g}' if setup.learning_rate else 'best rates'
    name = f'{setup.data}, {setup.max_steps:,.0f} steps, {rate}'
    for field, usual in dict(block_size=256, n_layer=4, n_embd=128, dropout=0).items():
        if getattr(setup, field) != usual:
            name += f', {field} {getattr(setup, field):g}'
    return name

def markdown(rows):
    head, *rows = rows
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines) + '\n'

def table(groups, setups, names, steps=None, turned=False):
    """Markdown: a row a model, a column a setup, or a step of one; turned: a row a setup."""
    names = [name for name in names if any(name in groups[setup] for setup in setups)]
    columns = [['', *names]]
    for setup in setups:
        for step in steps or [int(setup.max_steps)]:
            head = f'after {step:,}' if steps else setup_name(setup)
            columns.append([head, *(cell(groups[setup], name, step) for name in names)])
    return markdown(columns if turned else zip(*columns))

def rate_table(groups):
    """Markdown: a row a setup and model, a column a learning rate. For several rates or layers."""
    rates = sorted({setup.learning_rate for setup in groups} - {0})
    rows = [['', *(f'{rate:g}' for rate in rates)]]
    for any_rate in dict.fromkeys(setup._replace(learning_rate=0) for setup in groups):
        if any_rate not in groups and any_rate.n_layer == 4:
            continue
        setups = [any_rate._replace(learning_rate=rate) for rate in rates]
        for name in FOUR[:2]:
            cells = [cell(groups.get(setup, {}), name, int(setup.max_steps)) for setup in setups]
            if any(cells):
                rows.append([setup_name(any_rate).replace('best rates', name), *cells])
    return markdown(rows)

def tables(groups):
    """The tables of results.md, in its order."""
    best = [find(groups, max_steps=n, learning_rate=0)[0] for n in (600, 3000, 10000)]
    scales = find(groups, max_steps=3000, learning_rate=0.004)
    # other data, and longer contexts: the best of several rates, or the only one
    others = [setup for setup in groups if setup.data != 'stdlib' or setup.block_size == 512
              if setup.learning_rate == 0 or setup._replace(learning_rate=0) not in groups
              if setup.n_layer == 4 and setup.learning_rate != 0.001]
    paper = find(groups, data='english', n_layer=10, block_size=512, max_steps=2000)
    lists = {setup: groups[setup] for setup in groups if setup.data == 'listops-64'}
    streams = {setup: groups[setup] for setup in groups if setup not in lists}
    return [table(groups, best, FORMS),
            table(groups, best[2:], FOUR, steps=[600, 1000, 3000, 5000, 8000, 10000]),
            table(groups, paper[:1], FOUR, steps=[100, 300, 600, 1000, 1500, 2000]),
            table(groups, scales, best_last(groups[scales[0]])),
            table(groups, others, FOUR, turned=True),
            rate_table(streams), rate_table(lists)]

# ---- pictures ----
def draw_curves(figure, title, models):
    """The mean over the seeds; shaded: from the lowest to the highest."""
    axes = figure.subplots()
    for name in models:
        steps, losses, mean = curves(models[name])
        axes.loglog(steps[1:], mean[1:], label=f'{mean[-1]:.3f}  {name}')  # log 0 is nowhere
        axes.fill_between(steps[1:], losses.min(axis=0)[1:], losses.max(axis=0)[1:], alpha=0.3)
    axes.set(title=title, xlabel='step', ylabel='validation loss (nats a token)')
    axes.minorticks_off()
    axes.xaxis.set(major_locator=ticker.LogLocator(subs=(1, 2, 5)), major_formatter='{x:,.0f}')
    axes.yaxis.set(major_locator=ticker.MaxNLocator(16, steps=(1, 2, 10)), major_formatter='{x:g}')
    axes.legend(title='at the end', frameon=False)

def draw_windows(figure, groups):
    """The final loss against the longest window; a bar reaches from seed to seed."""
    axes = figure.subplots()
    for setup in [setup for setup in find(groups, max_steps=3000) if setup.learning_rate]:
        points, longest = [], int(math.log2(setup.block_size))
        for level in range(longest + 1):
            name = model_name('on' if level else 'off', 0.5, 1, level, longest)
            if name in groups[setup]:
                final = curves(groups[setup][name])[1][:, -1]  # (runs,)
                points.append([2 ** level, final.mean(), np.ptp(final) / 2])
        if len(points) > 2:
            axes.errorbar(*zip(*points), fmt='o-', capsize=4, label=f'{setup.learning_rate:g}')
    axes.set_xscale('log', base=2)
    axes.xaxis.set_major_formatter('{x:g}')
    axes.set(title='Code, 3,000 steps: with the longer windows the loss rises again',
             xlabel='longest window (1: plain GPT)', ylabel='final loss (nats a token)')
    axes.legend(title='learning rate', frameon=False)

def draw_kernels(figure, folder):
    """The first 32 weights of a window, the mean over its coordinates; Haar's are 1/f."""
    windows = {}
    checkpoint = torch.load(folder / 'last.pt', map_location='cpu', weights_only=True)
    for name, kernel in checkpoint['model'].items():
        if name.startswith('kernels.'):  # (n, 1, f): f times the weight, the newest last
            windows.setdefault(kernel.size(2), []).append(kernel)
    figure.suptitle("Learned kernels: the mean weight by age, beside Haar's (dashed)")
    panels = figure.subplots(2, math.ceil(len(windows) / 2), squeeze=False).flat
    for panel, (f, kernels) in zip(panels, windows.items()):
        weights = torch.cat(kernels).mean(dim=(0, 1)).flip(0) / f  # (f,)
        panel.plot(weights[:32], '.-')
        panel.axhline(1 / f, color='black', linestyle='--')
        panel.set(title=f'a window of {f}', xlabel='steps ago')

def main():
    parser = argparse.ArgumentParser(description=__doc__.strip().partition('\n')[0])
    parser.add_argument('--out', type=Path, help='a folder of runs, in the place of runs.csv')
    parser.add_argument('--add', type=Path, nargs='+', help='append these runs to runs.csv')
    parser.add_argument('--machine', default='', help='where they were trained')
    parser.add_argument('--threads', type=int, default=1, help='how many they had')
    args = parser.parse_args()
    if args.add:
        return add_runs(args.add, args.machine, args.threads)
    groups = group_runs(read_out(args.out) if args.out else read_csv())
    if args.out:
        for setup, models in groups.items():
            title = setup_name(setup)
            print(table(groups, [setup], best_last(models)))
            save_picture(args.out / (title.replace(',', '').replace(' ', '-') + '.png'),
                         lambda figure: draw_curves(figure, title, models))
            for folder in [args.out / run for run in models.get('learnable', [])]:
                save_picture(folder / 'kernels.png', lambda f: draw_kernels(f, folder))
        return

    print('\n'.join(tables(groups)))
    save_picture(ASSETS / 'windows.png', lambda figure: draw_windows(figure, groups))
    for file, (title, wanted) in PICTURES.items():
        for setup in find(groups, **wanted):
            models = {name: groups[setup][name] for name in FOUR if name in groups[setup]}
            save_picture(ASSETS / file, lambda figure: draw_curves(figure, title, models))

if __name__ == '__main__':
    main()
