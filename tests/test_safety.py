"""Nothing is lost, nothing of a stranger's is run, and whatever goes wrong ends in one sentence."""

import copy
import json
import math
import os
import pickle
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import prepare_data
import sample
import train
from conftest import ROOT

SMALL = dict(dataset='tiny', n_layer=2, n_head=2, n_embd=16, block_size=32, batch_size=4, max_steps=12, eval_interval=5,
             eval_windows=6, device='cpu', dropout=0.1)
PIECES = [40, 5, 33, 2, 90, 7, 300, 3, 20] * 10  # many shorter than a window: their sequences count fewer targets


@pytest.fixture
def tiny(here):
    make_tiny()
    return here


def make_tiny():
    text = 'the quick brown fox jumps over the lazy dog\n' * 200
    characters = ''.join(sorted(set(text)))
    tokens = prepare_data.encode_text(text, characters)[:sum(PIECES)]
    prepare_data.write_dataset('tiny', dict(train=tokens, val=tokens[::-1]), dict(
        prepare_data.text_meta(text, characters, 'a fox'), pieces=dict(train=PIECES, val=PIECES[::-1])))


def settings_of(*words):
    return prepare_data.read_settings(train.Settings, '', list(words))


def until(step, monkeypatch, action, **changes):
    """Train, and do action when the given step has been made; the sentence that it ends with."""
    clip = torch.nn.utils.clip_grad_norm_
    made = torch.load('out/broken/last.pt', weights_only=True)['step'] if changes.get('resume') else 0
    left = [step - made]

    def clip_and_action(*words):
        left[0] -= 1
        if left[0] == 0:
            action()
        return clip(*words)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(torch.nn.utils, 'clip_grad_norm_', clip_and_action)
        train.main(train.Settings(**{**SMALL, 'run': 'broken', **changes}))
    return end.value.code


def losses(rows):
    return [(row['step'], row['train_loss'], row['val_loss']) for row in rows]


def assert_same(one, other):
    assert all(torch.equal(a, b) for a, b in zip(one[0].parameters(), other[0].parameters()))
    assert losses(one[3]) == losses(other[3])


# Nothing is lost


@pytest.mark.parametrize('changes', [{}, dict(dtype='float16', dropout=0.0)])
def test_a_run_broken_off_after_any_step_and_resumed_equals_one_that_was_not(tiny, monkeypatch, changes):
    whole = train.train(train.Settings(**{**SMALL, **changes}))
    for step in (1, 5, 9) if changes else (1, 4, 5, 6, 11):  # rows of the log are at 0, 5, 10 and 12
        number = (signal.SIGINT, signal.SIGTERM)[step % 2]
        sentence = until(step, monkeypatch, lambda: signal.raise_signal(number), run=f'b{step}', **changes)
        assert f'stopped after step {step}' in sentence
        assert torch.load(f'out/b{step}/last.pt', weights_only=True)['step'] == step
        command = shlex.split(sentence.split('goes on: ')[1])
        assert command[0] == 'python' and command[2:] == ['--resume', f'--run=b{step}']
        resumed = train.train(settings_of(*command[2:]))
        assert_same(whole, resumed)
        log = (tiny / f'out/b{step}/log.csv').read_text().splitlines()
        assert [line.split(',')[:3] for line in log[1:]] == [[str(number) for number in row] for row in losses(whole[3])]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_run_may_be_broken_off_again_and_again(tiny, monkeypatch):
    whole = train.train(train.Settings(**SMALL))
    until(2, monkeypatch, lambda: signal.raise_signal(signal.SIGINT))
    for step in (3, 4, 7, 11):
        until(step, monkeypatch, lambda: signal.raise_signal(signal.SIGINT), resume=True)
    assert_same(whole, train.train(train.Settings(resume=True, run='broken')))


def test_a_resumed_run_may_be_evaluated_otherwise_and_ends_with_the_same_weights(tiny, monkeypatch):
    whole = train.train(train.Settings(**SMALL))
    until(6, monkeypatch, lambda: signal.raise_signal(signal.SIGINT))
    model, _, _, rows = train.train(settings_of('--resume', '--run=broken', '--eval_interval=4', '--eval_windows=9'))
    assert all(torch.equal(a, b) for a, b in zip(whole[0].parameters(), model.parameters()))
    assert [row['step'] for row in rows] == [0, 5, 8, 12]


def test_a_run_measured_over_different_numbers_of_windows_is_compared_with_none(tiny, monkeypatch, capsys):
    until(6, monkeypatch, lambda: signal.raise_signal(signal.SIGINT))
    train.train(train.Settings(**SMALL, run='whole'))
    until(8, monkeypatch, lambda: signal.raise_signal(signal.SIGINT), resume=True, eval_windows=9)
    train.train(settings_of('--resume', '--run=broken', '--eval_windows=6'))
    train.compare(train.Settings(**SMALL))
    said = capsys.readouterr().out
    assert 'out/broken: resumed with other --eval_windows' in said and re.search('^on +1 ', said, re.M)


def test_a_resumed_run_that_is_compared_with_none_still_ends_well(tiny, monkeypatch, capsys):
    until(6, monkeypatch, lambda: signal.raise_signal(signal.SIGINT))
    train.main(settings_of('--resume', '--run=broken', '--eval_windows=9'))
    assert 'compared with no other run, since --eval_windows changed' in capsys.readouterr().out


def test_a_run_that_fails_before_it_has_anything_to_save_leaves_its_name_free(tiny, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match='the memory is not enough'):
        patch.setattr(train, 'evaluate', lambda *_: exec('raise MemoryError'))
        train.main(train.Settings(**SMALL, run='mine'))
    assert not Path('out').exists()
    assert train.train(train.Settings(**SMALL, run='mine'))[2] == Path('out/mine')


def test_a_run_on_data_with_the_longest_name_can_be_resumed(tiny):
    prepare_data.main(['--input', __file__, f'--name={"x" * 40}'])
    changes = {**SMALL, 'dataset': 'x' * 40, 'max_steps': 1, 'wavelet': 'learnable'}
    train.train(train.Settings(**changes))
    folder = train.train(train.Settings(**changes))[2]
    assert train.train(settings_of('--resume', f'--run={folder.name}'))[2] == folder == Path('out') / f'{"x" * 40}-learnable-2'
    with pytest.raises(SystemExit, match='at most 40'):
        prepare_data.main(['--input', __file__, f'--name={"x" * 41}'])


def test_a_second_signal_is_obeyed_at_once(tiny, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        until(7, monkeypatch, lambda: [signal.raise_signal(signal.SIGINT) for _ in range(2)])
    assert torch.load('out/broken/last.pt', weights_only=True)['step'] == 5


def test_the_best_checkpoint_is_that_of_the_lowest_validation_loss(tiny, monkeypatch):
    losses = iter([4.0, 4.0, 3.0, 5.0, 6.0])  # training and validation at step 0, validation at steps 5, 10 and 12
    monkeypatch.setattr(train, 'evaluate', lambda *_: (next(losses), 0.0))
    folder = train.train(train.Settings(**SMALL))[2]
    assert [torch.load(folder / name, weights_only=True)['step'] for name in ('best.pt', 'last.pt')] == [5, 12]


def test_weights_that_are_no_numbers_and_an_optimizer_of_another_model_are_refused(tiny, monkeypatch):
    until(6, monkeypatch, lambda: signal.raise_signal(signal.SIGINT))
    path = Path('out/broken/last.pt')
    good = torch.load(path, weights_only=True)
    weights = copy.deepcopy(good)
    next(iter(weights['model'].values()))[0, 0] = math.nan
    other = copy.deepcopy(good)
    other['optimizer']['state'][0]['exp_avg'] = torch.zeros(3)
    for damaged, why in ((weights, 'finite|number|damaged'), (other, 'its optimizer belongs to another model')):
        torch.save(damaged, path)
        with pytest.raises(SystemExit, match=why):
            train.train(settings_of('--resume', '--run=broken'))


def test_the_second_signal_may_be_another_one():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with train.signals_noted() as noted:
        signal.raise_signal(signal.SIGINT)
        assert noted == [signal.SIGINT]
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_without_a_name_the_newest_run_of_the_default_name_goes_on(tiny, monkeypatch, capsys):
    for name in ('tiny-on', 'tiny-on-2', 'tiny-on-3', 'tiny-one', 'tiny-off'):
        until(3, monkeypatch, lambda: signal.raise_signal(signal.SIGINT), run=name, wavelet='off' if 'off' in name else 'on')
        time.sleep(0.01)
    os.utime('out/tiny-on-3/last.pt', (0, 0))
    assert train.train(settings_of('--resume', '--dataset=tiny'))[2] == Path('out/tiny-on-2')
    assert 'going on with out/tiny-on-2 at step 3' in capsys.readouterr().out


@pytest.mark.parametrize('word', ['--max_steps=13', '--n_layer=3', '--wavelet=off', '--seed=1', '--batch_size=8', '--size=paper',
                                  '--learning_rate=0.002', '--dataset=stdlib', '--dtype=bfloat16'])
def test_what_would_make_a_resumed_run_another_one_is_named_and_refused(tiny, monkeypatch, word):
    until(3, monkeypatch, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(SystemExit, match=word + ' contradicts out/broken/last.pt, which has '):
        train.train(settings_of('--resume', '--run=broken', word, '--eval_interval=3', '--dropout=0.1'))


def test_a_finished_run_that_is_resumed_stays_as_it_is(tiny):
    whole = train.train(train.Settings(**SMALL))
    before = (tiny / 'out/tiny-on/last.pt').read_bytes()
    assert_same(whole, train.train(settings_of('--resume', '--run=tiny-on')))
    assert (tiny / 'out/tiny-on/last.pt').read_bytes() == before


def test_a_run_that_dies_at_any_write_leaves_a_checkpoint_from_which_it_goes_on(tiny, monkeypatch):
    class Death(BaseException):
        pass
    settings = {**SMALL, 'max_steps': 4, 'eval_interval': 3}
    whole = train.train(train.Settings(**settings))
    loaded = 0
    for moment in range(100):
        calls = []

        def alive(function):
            def wrapped(*words):
                calls.append(words)
                if len(calls) == moment + 1:
                    raise Death
                return function(*words)
            return wrapped
        with monkeypatch.context() as patch:
            patch.setattr(prepare_data.os, 'fsync', alive(os.fsync))
            patch.setattr(prepare_data.os, 'replace', alive(os.replace))
            try:
                train.train(train.Settings(**settings, run=f'd{moment}'))
                break  # it lived through all of its writes
            except Death:
                pass
        if Path(f'out/d{moment}/last.pt').exists():
            assert_same(whole, train.train(train.Settings(resume=True, run=f'd{moment}')))
            loaded += 1
    assert loaded >= 12 and moment >= 18


def test_kill_9_from_outside_leaves_a_checkpoint_from_which_the_run_goes_on(tiny):
    changes = dict(max_steps=40, eval_interval=3)
    words = [f'--{name}={value}' for name, value in {**SMALL, **changes}.items()]
    with subprocess.Popen([sys.executable, ROOT / 'train.py', *words, '--run=killed'], stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not Path('out/killed/last.pt').exists() and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(random.random() / 20)
        process.kill()
    assert process.returncode == (1 if os.name == 'nt' else -signal.SIGKILL)
    resumed = train.train(settings_of('--resume', '--run=killed'))
    assert_same(train.train(train.Settings(**{**SMALL, **changes})), resumed)


@pytest.fixture
def small_disk(tmp_path, monkeypatch):
    """The current directory is a file system of 1 MB, where this machine lets us make one."""
    disk = tmp_path / 'disk'
    disk.mkdir()
    try:
        made = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=1m', 'none', disk], capture_output=True).returncode == 0
    except OSError:
        made = False
    if not made:
        pytest.skip('no tmpfs can be mounted here')
    monkeypatch.chdir(disk)
    make_tiny()
    yield disk
    monkeypatch.chdir(tmp_path)
    subprocess.run(['umount', disk], check=True)


def test_a_full_disk_and_a_read_only_one_end_in_one_sentence_and_leave_the_checkpoint_as_it_was(small_disk, monkeypatch):
    whole = train.train(train.Settings(**SMALL, run='w'))
    for file in Path('out/w').iterdir():
        file.unlink()
    until(7, monkeypatch, lambda: signal.raise_signal(signal.SIGINT))
    before = Path('out/broken/last.pt').read_bytes()
    with open('filler', 'wb', buffering=0) as filler, pytest.raises(OSError):
        while True:
            filler.write(bytes(4096))
    with pytest.raises(SystemExit, match='^could not write out/broken/[a-z.]+: No space left on device$'):
        train.train(settings_of('--resume', '--run=broken'))
    os.unlink('filler')
    subprocess.run(['mount', '-o', 'remount,ro', small_disk], check=True)
    try:
        with pytest.raises(SystemExit, match='^could not write out/broken/log.csv: Read-only file system$'):
            train.train(settings_of('--resume', '--run=broken'))
        with pytest.raises(SystemExit, match='^could not make the folder out/new: Read-only file system$'):
            train.train(train.Settings(**SMALL, run='new'))
        with pytest.raises(SystemExit, match='Read-only file system$'):
            make_tiny()
    finally:
        subprocess.run(['mount', '-o', 'remount,rw', small_disk], check=True)
    assert Path('out/broken/last.pt').read_bytes() == before and not list(Path('out').glob('*/*.part'))
    assert_same(whole, train.train(settings_of('--resume', '--run=broken')))


def test_a_file_that_another_program_has_open_on_windows_is_waited_for_and_then_named(tiny, monkeypatch, capsys):
    replace, waits = os.replace, []

    def refuse(*paths, times):
        if len(waits) < times:
            error = PermissionError(13, 'Access is denied')
            error.winerror = 5
            raise error
        replace(*paths)
    monkeypatch.setattr(prepare_data.time, 'sleep', waits.append)
    with monkeypatch.context() as patch:
        patch.setattr(prepare_data.os, 'replace', lambda *paths: refuse(*paths, times=10))
        prepare_data.write_aside(Path('log.csv'), b'new')
    assert Path('log.csv').read_bytes() == b'new' and 'log.csv open: close it there' in capsys.readouterr().err
    waits.clear()
    monkeypatch.setattr(prepare_data.os, 'replace', lambda *paths: refuse(*paths, times=math.inf))
    with pytest.raises(SystemExit, match='^could not write log.csv: Access is denied$'):
        prepare_data.write_aside(Path('log.csv'), b'newer')
    assert Path('log.csv').read_bytes() == b'new' and not list(Path().glob('*.part')) and 25 < sum(waits) < 60
    monkeypatch.setattr(prepare_data.time, 'sleep', lambda _: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        prepare_data.write_aside(Path('log.csv'), b'newest')
    assert Path('log.csv').read_bytes() == b'new' and not list(Path().glob('*.part'))


@pytest.mark.parametrize('late', [False, True])
def test_a_loss_that_is_no_number_stops_the_run_with_advice_and_is_never_saved(tiny, monkeypatch, late):
    step = torch.optim.AdamW.step
    made = []

    def spoil(optimizer, *words):
        step(optimizer, *words)
        made.append(1)
        if len(made) == 7:
            optimizer.param_groups[0]['params'][0].data[0, 0] = math.nan
            if late:  # stopped before any loss could tell
                signal.raise_signal(signal.SIGINT)
    monkeypatch.setattr(torch.optim.AdamW, 'step', spoil)
    with pytest.raises(SystemExit, match=r'no longer a number at step (7|10).*lower --learning_rate'):
        train.main(train.Settings(**SMALL))
    for name in ('last.pt', 'best.pt'):
        checkpoint, model = sample.load(Path('out/tiny-on') / name)
        assert checkpoint['step'] <= 5
    assert 'nan' not in (tiny / 'out/tiny-on/log.csv').read_text()


def test_memory_that_is_not_enough_says_what_to_lower(tiny, monkeypatch):
    sentence = until(2, monkeypatch, lambda: torch.empty(10 ** 15))  # what the allocator says is really out of memory
    assert sentence.startswith('the memory is not enough: lower --batch_size first')

    def no_gpu_memory():
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB.')
    assert until(2, monkeypatch, no_gpu_memory, run='gpu') == sentence
    assert until(2, monkeypatch, lambda: np.zeros(10 ** 15), run='numpy') == sentence

    def something_else():
        raise RuntimeError('something else')
    with pytest.raises(RuntimeError, match='something else'):  # is not hidden
        until(2, monkeypatch, something_else, run='other')


# Nothing of a stranger's is run or believed


def one_sentence(call):
    """Whether call ended the program; if it did, then in one sentence."""
    try:
        call()
        return False
    except SystemExit as end:
        words = end.code.removeprefix('nothing was done, because\n  ')
        assert '\n' not in words.strip() and 10 < len(words) < 500, words
        return True


HOSTILE = (None, True, -1, 0, 1, 2 ** 40, 10 ** 30, 1.5, -1e300, math.nan, math.inf, '', 'x', '../../x', [], [1], {}, {'a': 1})


def mutated(tree, rng):
    """A copy of nested dicts and lists in which one thing, anywhere, is gone or something else."""
    tree = copy.deepcopy(tree)
    node = tree
    while True:
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        below = node[key]
        if not isinstance(below, (dict, list)) or not below or rng.random() < 0.1:
            break
        node = below
    kind = rng.randrange(8)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, dict):
        node[str(key) + 'x'] = node.pop(key)
    elif isinstance(below, torch.Tensor) and kind < 5:
        node[key] = rng.choice([below.flatten()[:0], below.flatten(), below * math.nan, below.repeat(2, *[1] * (below.dim() - 1))
                                if below.dim() else below.repeat(2), torch.zeros(3), below.to(torch.int8)])
    else:
        node[key] = rng.choice(HOSTILE + (torch.zeros(()), torch.ones(2, 2)) if kind < 7 else HOSTILE)
    return tree


def damaged(data, rng):
    """bytes with some of them changed, gone or doubled."""
    data, at = bytearray(data), rng.randrange(len(data))
    kind = rng.randrange(4)
    if kind == 0:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        data[at:at + rng.randrange(1, 100)] = rng.randbytes(rng.randrange(100))
    else:
        data[at:at] = data[at:at + 1000]
    return bytes(data)


@pytest.fixture
def broken_off(tiny, monkeypatch):
    monkeypatch.setattr(train.GPT, 'generate', lambda model, idx, *_, **__: idx)  # the sample at the end only takes time
    monkeypatch.setattr(prepare_data.os, 'fsync', lambda _: None)
    until(10, monkeypatch, lambda: signal.raise_signal(signal.SIGINT), n_layer=2, eval_windows=1)
    return tiny


def load_everywhere(path):
    """Resume the run and sample it; whether either ended in (one) sentence."""
    run = path.parent.name
    data = path.read_bytes()
    (path.parent / 'best.pt').write_bytes(data)
    ends = [one_sentence(lambda: train.main(train.Settings(resume=True, run=run)))]
    (path.parent / 'best.pt').write_bytes(data)
    return ends + [one_sentence(lambda: sample.main(sample.Settings(run=run, num_tokens=2)))]


def test_20_mutated_checkpoints_end_in_one_sentence_or_do_no_harm(broken_off, capsys):
    rng = random.Random(1)
    path = Path('out/broken/last.pt')
    whole, tree = path.read_bytes(), torch.load(path, weights_only=True)
    refused = []
    for n in range(20):
        if n % 3 == 0:
            path.write_bytes(damaged(whole, rng))
            ends = load_everywhere(path)
            # A zip file has bytes that say nothing (times, padding): whatever else is changed must be refused.
            assert all(ends) or torch.equal(sample.load(path.with_name('best.pt'))[1].lm_head.weight, tree['model']['lm_head.weight'])
        else:
            torch.save(mutated(tree, rng), path)
            ends = load_everywhere(path)
        refused.append(any(ends))
    assert sum(refused) > 12
    assert 'Traceback' not in capsys.readouterr().err
    assert sorted(file.name for file in broken_off.iterdir()) == ['data', 'out']


class Hostile:
    def __init__(self, function, *words):
        self.call = function, words

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize('call', [(os.system, 'touch ran'), (open, 'ran', 'w'), (eval, 'open("ran", "w")'), (Path.touch, Path('ran'))])
def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(broken_off, call):
    path = Path('out/broken/last.pt')
    tree = torch.load(path, weights_only=True)
    for key in (None, 'model', 'meta', 'step', 'rng', 'new'):
        torch.save(Hostile(*call) if key is None else {**tree, key: Hostile(*call)}, path)
        assert load_everywhere(path) == [True, True]
        path.write_bytes(pickle.dumps(Hostile(*call)))  # no zip file at all
        assert load_everywhere(path) == [True, True]
    assert not Path('ran').exists()


def test_a_checkpoint_of_another_architecture_is_refused(broken_off):
    path = Path('out/broken/last.pt')
    tree = torch.load(path, weights_only=True)
    for name, value in dict(n_layer=3, n_embd=32, block_size=64, bias=True, vocab_size=29, n_head=3, wavelet='other',
                            n_experts=8).items():
        torch.save({**tree, 'config': {**tree['config'], name: value}}, path)
        assert load_everywhere(path) == [True, True]
    torch.save({'weight': torch.zeros(3)}, path)
    assert load_everywhere(path) == [True, True]


def test_a_config_that_claims_a_huge_model_is_refused_before_anything_is_built(broken_off):
    path = Path('out/broken/last.pt')
    tree = torch.load(path, weights_only=True)
    for name in ('n_layer', 'n_embd', 'block_size'):
        torch.save({**tree, 'config': {**tree['config'], name: 10 ** 12}}, path)
        with pytest.raises(SystemExit, match='describes another model|must be between 1 and'):
            sample.load(path)
    kernels = dict(n_layer=400, n_head=1, n_embd=1, block_size=2 ** 17, wavelet='learnable', wavelet_fraction=1.0, wavelet_min_level=17)
    torch.save({**tree, 'config': {**tree['config'], **kernels}, 'padding': torch.zeros(200_000)}, path)
    with pytest.raises(SystemExit, match='describes another model'):
        sample.load(path)


def test_data_with_another_vocabulary_or_other_tokens_cannot_be_resumed_with(broken_off):
    meta = json.loads(Path('data/tiny/meta.json').read_text())
    tokens = prepare_data.read_tokens('tiny', 'train', meta)
    splits = dict(train=tokens, val=tokens)
    prepare_data.write_dataset('tiny', splits, {**meta, 'characters': meta['characters'].replace('q', 'Q')})
    with pytest.raises(SystemExit, match='data/tiny has another vocabulary than out/broken was trained on'):
        train.train(settings_of('--resume', '--run=broken'))
    prepare_data.write_dataset('tiny', dict(splits, train=np.roll(tokens, 1)), meta)
    with pytest.raises(SystemExit, match='data/tiny has other tokens than out/broken was trained on'):
        train.train(settings_of('--resume', '--run=broken'))


def test_240_mutated_meta_files_end_in_one_sentence_or_do_no_harm(tiny, monkeypatch):
    monkeypatch.setattr(prepare_data.os, 'fsync', lambda _: None)
    rng = random.Random(2)
    path = Path('data/tiny/meta.json')
    whole = path.read_bytes()
    refused = 0
    for n in range(240):
        path.write_bytes(damaged(whole, rng) if n % 2 else json.dumps(mutated(json.loads(whole), rng), default=str).encode())
        refused += one_sentence(lambda: train.train(train.Settings(**{**SMALL, 'max_steps': 1, 'eval_windows': 1})))
    assert refused > 120
    for content in (b'', b'[' * 100_000, b'null', b'{}', b'1' * 10_000, b'\xff\xfe', b'{"modality": "text"}', b'[1]'):
        path.write_bytes(content)
        assert one_sentence(lambda: train.train(train.Settings(**SMALL)))
    path.unlink()
    path.mkdir()
    assert one_sentence(lambda: train.train(train.Settings(**SMALL)))


def test_220_mutated_token_files_are_all_refused(tiny):
    rng = random.Random(3)
    for n in range(220):
        path = Path('data/tiny') / rng.choice(['train.bin', 'val.bin'])
        whole = path.read_bytes()
        if (changed := damaged(whole, rng)) != whole:
            path.write_bytes(changed)
            with pytest.raises(SystemExit, match=f'^{path} is not what meta.json says it is: prepare tiny again$'):
                train.train(train.Settings(**SMALL))
            path.write_bytes(whole)
    path.unlink()
    with pytest.raises(SystemExit, match=f'^could not read {path}: No such file or directory; prepare tiny again$'):
        train.train(train.Settings(**SMALL))
    assert not Path('out').exists()


# Several processes


@pytest.mark.skipif(os.name == 'nt', reason='torchrun does not work with the PyTorch of Windows')
def test_two_processes_that_share_the_batches_learn_what_one_learns(tiny):
    settings = {**SMALL, 'dropout': 0.0}
    model, _, _, rows = train.train(train.Settings(**settings))
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2', '--master_addr=127.0.0.1',
                           f'--master_port={port}', '--', ROOT / 'train.py', '--run=two',
                           *(f'--{name}={value}' for name, value in settings.items())],
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('step 0:') == 1  # one of them speaks
    checkpoint, other = sample.load(Path('out/two/last.pt'))
    for a, b in zip(model.parameters(), other.parameters()):
        assert torch.allclose(a, b, atol=1e-5)
    for row, two in zip(losses(rows), losses(checkpoint['rows']), strict=True):
        assert row == pytest.approx(two, abs=1e-5)


def test_a_batch_that_cannot_be_shared_out_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(train, 'WORLD', 3)
    with pytest.raises(SystemExit, match='^--batch_size=4 must be a multiple of the 3 processes'):
        train.train(train.Settings(**SMALL))


# Settings


@pytest.mark.parametrize('script, words, named', [
    (train, '--learning_rte=1 --n_layers=3 --resum --batchsize=3', 'learning_rate? n_layer? resume? batch_size?'),
    (train, '--n_layer=0 --n_head=-1 --n_embd=10000000 --block_size=1', 'n_layer=0 n_head=-1 n_embd=10000000'),
    (train, '--n_layer=2.5 --n_embd=many --bias=maybe --compile=2 --seed', 'n_layer=2.5 n_embd=many bias=maybe compile=2 seed'),
    (train, '--block_size=1', 'block_size=1'),
    (train, '--n_embd=30 --n_head=4', 'n_embd=30 n_head=4'),
    (train, '--batch_size=0 --max_steps=0 --eval_interval=0 --eval_windows=-5 --warmup_steps=-1',
     'batch_size=0 max_steps=0 eval_interval=0 eval_windows=-5 warmup_steps=-1'),
    (train, '--learning_rate=-1 --grad_clip=0 --weight_decay=-0.1', 'learning_rate=-1.0 grad_clip=0.0 weight_decay=-0.1'),
    (train, '--learning_rate=inf --grad_clip=nan --weight_decay=nan', 'learning_rate=inf grad_clip=nan weight_decay=nan'),
    (train, '--seed=-1 --dropout=1', 'seed=-1 dropout=1'),
    (train, '--seed=99999999999999999999999 --dropout=nan', 'seed=99999999999999999999999 dropout=nan'),
    (train, '--wavelet=yes --size=big --device=gpu --dtype=half', 'yes size=big device=gpu dtype=half'),
    (train, '--wavelet_fraction=1.5', 'wavelet_fraction=1.5'),
    (train, '--wavelet_min_level=5 --wavelet_max_level=3', '5..3'),
    (train, '--wavelet_max_level=30', '1..30'),
    (train, '--dataset=stdlibs --run=..', 'dataset=stdlibs stdlib? run=..'),
    (train, '--dataset=../data/tiny --run=a/b', 'dataset=../data/tiny run=a/b'),
    (train, '--dataset=tinny --run=' + 'x' * 300, 'dataset=tinny tiny? 60'),
    (train, '--resume --run=tiny-no', 'out/tiny-no/last.pt tiny-on?'),
    (train, '--resume --dataset=tiny --wavelet=off', 'out/tiny-off/last.pt'),
    (train, '--run=tiny-on', 'run=tiny-on already --resume'),
    (train, 'resume more', 'resume more'),
    (sample, '--temprature=1 --topk=3 --num_token=4', 'temperature? top_k? num_tokens?'),
    (sample, '--num_tokens=0 --top_k=0 --temperature=-1 --seed=-1', 'num_tokens=0 top_k=0 temperature=-1.0 seed=-1'),
    (sample, '--num_tokens=1e3 --top_k=x --temperature=warm', 'num_tokens=1e3 top_k=x temperature=warm'),
    (sample, '--temperature=nan --seed=99999999999999999999', 'temperature=nan seed=99999999999999999999'),
    (sample, '--temperature=1e-40', 'temperature=1e-40'),
    (sample, '--device=tpu --run=tiny-no --out=nowhere/x.txt', 'device=tpu run=tiny-no tiny-on? nowhere'),
    (sample, '--run=../tiny --out=.', 'run=../tiny out=.'),
    (prepare_data, 'stdlb', 'stdlb stdlib?'),
    (prepare_data, '--inputs=x --nam=y', 'input? name?'),
    (prepare_data, 'text8 --midi=x', 'dataset midi'),
    (prepare_data, '--input=nowhere.txt --name=a/b', 'nowhere.txt name=a/b'),
    (prepare_data, f'--input={"x" * 300} --wav={"y" * 300}', 'input wav name'),
    (prepare_data, '--midi=nowhere', 'midi name nowhere'),
    (prepare_data, '--name=x --alphabet=greek', 'name alphabet=greek'),
    (prepare_data, '--alphabet=text8 --name=text8', 'alphabet name=text8'),
])
def test_every_wrong_setting_is_named_and_all_at_once(tiny, script, words, named):
    Path('out/tiny-on').mkdir(parents=True)
    for name in ('last.pt', 'best.pt'):
        (Path('out/tiny-on') / name).touch()
    with pytest.raises(SystemExit) as end:
        prepare_data.read_settings(script.Settings, '', words.split(), positional='dataset' if script is prepare_data else None)
    sentences = end.value.code
    assert 'did nothing, because' in sentences and not re.search('Error|Traceback', sentences)
    for word in named.split():
        assert word in sentences
