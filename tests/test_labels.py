"""Long Range Arena: made by its rules or read from its archives, labels that cannot leak, accuracies that are true."""

import hashlib
import inspect
import io
import json
import multiprocessing
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import prepare_data
import sample
import train
from conftest import ROOT
from prepare_data import SYMBOLS, listops_answer, listops_chunk, random_expression
from test_pieces import read_back
from test_safety import mutated, one_sentence
from wavelet_gpt import GPT, GPTConfig

SMALL = dict(dataset='tiny', n_layer=2, n_head=2, n_embd=16, batch_size=4, max_steps=6, eval_interval=3, eval_windows=8, device='cpu')
CLOSE, ZERO = SYMBOLS.index(']'), SYMBOLS.index('0')


def first_digits(n, seed, longest=12):
    """n examples whose label is their first digit, from 3 to longest tokens long."""
    rng = random.Random(seed)
    for _ in range(n):
        digits = [ZERO + rng.randrange(10) for _ in range(rng.randrange(1, longest - 1))]
        yield np.array([rng.randrange(4), *digits, CLOSE, digits[0]], np.uint8)


def write_tiny(n=60, name='tiny', **changes):
    pieces = [(split, piece) for seed, split in enumerate(('train', 'val', 'test')) for piece in first_digits(n, seed)]
    prepare_data.write_pieces(name, pieces, dict(dict(modality='listops', vocab_size=15, labels=list('0123456789'), source=''), **changes))


@pytest.fixture
def tiny(here):
    write_tiny()
    return here


# The generator


def evaluated(tokens):
    """The value of an expression, by Python's own parser."""
    code = ' '.join(SYMBOLS[token] for token in tokens)
    code = re.sub(r'\[(\w+) ', r'\1(', code).replace(' ]', ')').replace(' ', ', ')
    return eval(code, dict(MIN=lambda *a: min(a), MAX=lambda *a: max(a), MED=lambda *a: int(np.median(a)),
                           SM=lambda *a: int(str(sum(a))[-1])))


def described(tokens):
    """How deep an expression is and all numbers of arguments in it."""
    open_brackets, counts, deepest = [0], [], 1
    for token in tokens:
        if token == CLOSE:
            counts.append(open_brackets.pop())
            continue
        open_brackets[-1] += 1
        deepest = max(deepest, len(open_brackets))
        if token < 4:
            open_brackets.append(0)
    assert open_brackets == [1]
    return deepest, counts


def test_the_answers_are_those_of_an_independent_evaluator():
    rng, seen = random.Random(5), Counter()
    while sum(seen.values()) < 500:
        tokens = random_expression(rng, 400)
        if 1 < len(tokens) < 400:
            answer = listops_answer(tokens)
            assert answer == evaluated(tokens)
            seen[answer] += 1
    assert set(seen) == set(range(10)) and seen.most_common(1)[0][1] < 150


@pytest.mark.parametrize('text, answer', [('7', 7), ('[MED 1 2 ]', 1), ('[MED 1 4 5 ]', 4), ('[SM 9 9 ]', 8), ('[MED 3 4 9 9 ]', 6),
                                          ('[MAX 2 9 [MIN 4 7 ] 0 ]', 9), ('[SM 5 [SM 5 5 ] [MIN 3 4 ] ]', 8)])
def test_small_expressions_have_the_values_that_one_finds_by_hand(text, answer):
    assert listops_answer([SYMBOLS.index(word) for word in text.split()]) == answer


@pytest.mark.parametrize('text', ['', ']', '[MIN ]', '[MIN 1 2', '1 2', '[MIN 1 ] ]', '[MIN 1 ] 2', '[MAX [MIN ] 3 ]'])
def test_what_is_no_expression_has_no_value(text):
    with pytest.raises(ValueError):
        listops_answer([SYMBOLS.index(word) for word in text.split()])


def assert_even(counts, expected):
    """Every expected value is as frequent as the others, within 5 standard deviations."""
    assert set(counts) == set(expected)
    mean = sum(counts.values()) / len(expected)
    assert all(abs(count - mean) < 5 * mean ** 0.5 for count in counts.values()), counts


def test_expressions_follow_the_rules_of_the_benchmark():
    rng = random.Random(1)
    expressions = [random_expression(rng, 10 ** 9) for _ in range(2500)]
    operators, digits, arguments, depths = Counter(), Counter(), Counter(), Counter()
    for tokens in expressions:
        deepest, counts = described(tokens)
        depths[deepest] += 1
        arguments.update(counts)
        operators.update(token for token in tokens if token < 4)
        digits.update(token for token in tokens if token >= ZERO)
    assert abs(sum(len(tokens) > 1 for tokens in expressions) / 2500 - 0.25) < 0.04  # the root is an operator
    assert_even(operators, range(4))
    assert_even(digits, range(ZERO, 15))
    assert_even(arguments, range(2, 11))
    assert max(depths) == 10 and set(depths) == set(range(1, 11))


def test_breaking_off_long_expressions_does_not_change_the_lengths_of_those_that_are_kept():
    def length(rng, depth=1):  # the same rules, as one recursion that breaks nothing off
        if depth == 10 or rng.random() >= 0.25:
            return 1
        return 2 + sum(length(rng, depth + 1) for _ in range(rng.randint(2, 10)))
    rng = random.Random(2)
    plain = [n for n in (length(rng) for _ in range(5000)) if 16 < n < 64]
    kept = [len(tokens) - 1 for tokens in listops_chunk((7, 0, 64))]
    assert len(kept) == 500 and 16 < min(kept) and max(kept) < 64
    deviation = (statistics.variance(plain) / len(plain) + statistics.variance(kept) / len(kept)) ** 0.5
    assert abs(statistics.mean(plain) - statistics.mean(kept)) < 4 * deviation


def test_the_same_seed_gives_the_same_bytes_on_any_number_of_cores_and_no_two_examples_are_equal(here, monkeypatch):
    pool, found = multiprocessing.Pool, []
    monkeypatch.setattr(prepare_data, 'HELD_OUT', 200)
    for cores, seed in ((1, 3), (3, 3), (2, 4)):
        monkeypatch.setattr(prepare_data.multiprocessing, 'Pool', lambda **options: pool(cores, **options))
        prepare_data.main(['listops', '--max_length=32', '--examples=700', f'--seed={seed}'])
        found.append([Path(f'data/listops-32/{name}').read_bytes() for name in ('train.bin', 'val.bin', 'test.bin', 'meta.json')])
    assert found[0] == found[1] and all(a != b for a, b in zip(found[0], found[2]))
    meta, splits = read_back('listops-32')
    assert {split: len(pieces) for split, pieces in splits.items()} == dict(train=700, val=200, test=200)
    everything = [piece.tobytes() for pieces in splits.values() for piece in pieces]
    assert len(set(piece[:-1] for piece in everything)) == 1100
    for piece in everything:
        assert 8 < len(piece) - 1 < 32 and piece[-1] == ZERO + evaluated(piece[:-1])
    means = {split: np.mean([len(piece) for piece in pieces]) for split, pieces in splits.items()}
    assert max(means.values()) - min(means.values()) < 2  # the splits are alike


@pytest.mark.skipif(os.name == 'nt', reason='Windows has other signals')
def test_ctrl_c_while_expressions_are_made_ends_in_one_sentence_and_leaves_what_was_there(here):
    write_tiny(name='listops-32')
    before = {path.name: path.read_bytes() for path in (here / 'data/listops-32').iterdir()}
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
    process = subprocess.Popen([sys.executable, ROOT / 'prepare_data.py', 'listops', '--max_length=32'], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, start_new_session=True)
    signal.signal(signal.SIGINT, ours)
    assert process.stdout.read(1) == b'\r'  # the first chunk is made
    os.kill(process.pid, signal.SIGSTOP)  # so that those of the pool have all the time to complain
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of its processes
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGCONT)
    error = process.communicate(timeout=30)[1].decode()
    assert process.returncode == 1 and error.strip().startswith('stopped;') and len(error.splitlines()) == 2
    assert before == {path.name: path.read_bytes() for path in (here / 'data/listops-32').iterdir()}


@pytest.mark.parametrize('words, named', [
    (['listops', '--max_length=3'], '--max_length=3 must be between 16 and 8000'),
    (['listops', '--max_length=10000000'], '--max_length=10000000 must be between'),
    (['listops', '--max_length=abc'], '--max_length=abc must be a whole number'),
    (['listops', '--examples=0', '--seed=-1'], '--examples=0 must be .*--seed=-1 must be'),
    (['cifar10', '--max_length=64'], '--max_length goes with listops or imdb'),
    (['imdb', '--examples=64', '--seed=2'], '--examples goes with listops.*--seed goes with listops'),
    (['listops', '--name=mine'], '--name goes with'),
    (['listop'], 'did you mean listops'),
])
def test_every_wrong_option_is_named_and_nothing_is_made(here, words, named):
    with pytest.raises(SystemExit) as end:
        prepare_data.main(words)
    assert re.search(named, str(end.value), re.S) and not (here / 'data').exists()


# Archives, from a server on this machine


def tar_of(members):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode='w:gz') as file:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            if data is None:
                member.type, member.linkname = tarfile.SYMTYPE, '/etc/passwd'
            else:
                member.size = len(data)
            file.addfile(member, io.BytesIO(data or b''))
    return archive.getvalue()


REVIEWS = {f'aclImdb/{split}/{kind}/{n}_{1 + 9 * (kind == "pos")}.txt': f'{split} {kind} {n}: caf\xe9 '.encode() * (1 + n * 3)
           for n in range(20) for split in ('test', 'train') for kind in ('neg', 'pos')}
OTHERS = {'aclImdb/README': b'x', 'aclImdb/train/unsup/1_0.txt': b'x', '../../evil.txt': b'x', '/evil.txt': b'x',
          'aclImdb/train/pos/../../../1_2.txt': b'x', 'aclImdb/train/pos/99_9.txt': None}
PICTURES = {f'cifar-10-batches-bin/{name}.bin': np.random.default_rng(n).integers(0, 256, (10, 3073), np.uint8)
            for n, name in enumerate(['data_batch_3', 'data_batch_1', 'test_batch', 'data_batch_2', 'data_batch_5', 'data_batch_4'])}
for records in PICTURES.values():
    records[:, 0] %= 10


def serve(server, monkeypatch, name, content):
    server.content = content
    monkeypatch.setattr(prepare_data, 'REVIEWS', 20)
    monkeypatch.setattr(prepare_data, 'PICTURES', 10)
    monkeypatch.setattr(prepare_data, name, dict(url=server.url, size=len(content), sha256=hashlib.sha256(content).hexdigest()))


def test_imdb_is_read_as_bytes_cut_and_split_as_its_authors_did(here, server, monkeypatch):
    serve(server, monkeypatch, 'IMDB', tar_of({**REVIEWS, **OTHERS}))
    for words, longest in (([], 4096), (['--max_length=100'], 100)):
        prepare_data.main(['imdb', *words])
        meta, splits = read_back('imdb' if longest == 4096 else 'imdb-100')
        assert meta['labels'] == ['neg', 'pos'] and meta['vocab_size'] == 258 and len(splits['val']) == 4
        texts = {split: Counter((bytes(piece[:-1].tolist()), meta['labels'][piece[-1] - 256]) for piece in pieces)
                 for split, pieces in splits.items()}
        wanted = {split: Counter((data[:longest], name.split('/')[2]) for name, data in REVIEWS.items() if split in name)
                  for split in ('train', 'test')}
        assert texts['test'] == wanted['test'] and texts['train'] + texts['val'] == wanted['train']
    assert server.requests == 1 and [path.name for path in here.iterdir()] == ['data']
    first = Path('data/imdb/train.bin').read_bytes()
    serve(server, monkeypatch, 'IMDB', tar_of(dict(reversed(REVIEWS.items()))))
    prepare_data.main(['imdb'])
    assert Path('data/imdb/train.bin').read_bytes() == first  # whatever the order in the archive


def test_cifar10_is_read_in_grey_and_in_the_order_of_its_files(here, server, monkeypatch):
    serve(server, monkeypatch, 'CIFAR10', tar_of({**{name: records.tobytes() for name, records in PICTURES.items()}, **OTHERS}))
    prepare_data.main(['cifar10'])
    meta, splits = read_back('cifar10')
    assert {split: len(pieces) for split, pieces in splits.items()} == dict(train=45, val=5, test=10)
    in_order = [record for name in sorted(PICTURES) for record in PICTURES[name]]
    for record, tokens in zip(in_order, [*splits['train'], *splits['val'], *splits['test']], strict=True):
        red, green, blue = record[1:].reshape(3, 1024).astype(float)
        assert np.abs(tokens[:-1] - (0.299 * red + 0.587 * green + 0.114 * blue)).max() < 0.5001
        assert tokens[-1] == 256 + int(record[0])
    assert meta['labels'][3] == 'cat' and [path.name for path in here.iterdir()] == ['data']


@pytest.mark.parametrize('kind', ['cut', 'html', 'few'])
@pytest.mark.parametrize('name, members', [('imdb', REVIEWS), ('cifar10', {k: v.tobytes() for k, v in PICTURES.items()})])
def test_a_damaged_or_incomplete_archive_is_refused_in_one_sentence(here, server, monkeypatch, name, members, kind):
    whole = tar_of(members)
    serve(server, monkeypatch, name.upper(), dict(cut=whole[:len(whole) // 2], html=b'<html>not found</html>',
                                                  few=tar_of(dict(list(members.items())[1:])))[kind])
    assert one_sentence(lambda: prepare_data.main([name]))
    with pytest.raises(SystemExit, match='delete it, and run this again'):
        prepare_data.main([name])
    assert not list(Path('data').glob('*/meta.json'))


@pytest.mark.parametrize('change', [lambda records: records[:9], lambda records: np.full_like(records, 10)])
def test_photos_of_another_size_or_with_other_labels_are_refused(here, server, monkeypatch, change):
    members = {name: change(records).tobytes() if 'batch_4' in name else records.tobytes() for name, records in PICTURES.items()}
    serve(server, monkeypatch, 'CIFAR10', tar_of(members))
    with pytest.raises(SystemExit, match='does not hold 10 labelled pictures'):
        prepare_data.main(['cifar10'])


# Batches


def test_a_batch_holds_whole_examples_and_counts_nothing_but_their_labels(tiny):
    meta, splits = read_back('tiny')
    T = 15
    data = train.load_tokens('tiny', 'train', meta, T, torch.device('cpu'))
    assert train.places(data, T) == 60
    idx, targets = train.windows(data, torch.arange(60), T, torch.device('cpu'))
    for piece, read, counted in zip(splits['train'], idx.tolist(), targets.tolist(), strict=True):
        content, label = piece[:-1].tolist(), piece[-1]
        assert read == content + [0] * (T - len(content))
        assert counted == [label if t == len(content) - 1 else -1 for t in range(T)]


def test_examples_are_drawn_alike_however_long_they_are(here, monkeypatch):
    pieces = [np.array([0] + [5] * n + [5 + n % 10]) for n in (1, 2, 60)]
    prepare_data.write_pieces('tiny', [(split, piece) for split in ('train', 'val', 'test') for piece in pieces],
                              dict(modality='listops', vocab_size=15, labels=list('0123456789')))
    drawn, windows = Counter(), train.windows

    def noted(data, starts, *words):
        drawn.update(starts.tolist())
        return windows(data, starts, *words)
    monkeypatch.setattr(train, 'windows', noted)
    monkeypatch.setattr(train, 'evaluate', lambda *_: (1.0, 1.0))
    train.train(train.Settings(**{**SMALL, 'max_steps': 60, 'eval_interval': 60}))
    assert_even(drawn, range(3))


@pytest.mark.parametrize('wavelet', ['on', 'learnable', 'ema', 'past', 'off'])
def test_the_label_and_the_padding_cannot_be_seen_where_the_label_is_predicted(wavelet):
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=40, vocab_size=15, n_layer=3, n_head=2, n_embd=16, wavelet=wavelet)).eval()
    idx = torch.randint(15, (6, 40))
    for length in (1, 2, 17, 39):
        logits = model(idx)[0][:, :length]
        for change in (torch.zeros_like, lambda some: (some + 1) % 15, lambda some: some.flip(0)):
            other = torch.cat((idx[:, :length], change(idx[:, length:])), dim=1)
            assert torch.equal(model(other)[0][:, :length], logits)
        assert torch.allclose(model(idx[:, :length])[0], logits, atol=1e-5)  # nor does it matter how much there is


def test_another_label_leaves_every_input_as_it_is(tiny):
    meta, _ = read_back('tiny')
    tokens, ends, _ = train.load_tokens('tiny', 'train', meta, 20, torch.device('cpu'))
    other = tokens.clone()
    other[ends - 1] = ZERO + (other[ends - 1] - ZERO + 1) % 10
    (idx, targets), (same, others) = (train.windows((some, ends, True), torch.arange(60), 20, torch.device('cpu'))
                                      for some in (tokens, other))
    assert torch.equal(idx, same) and ((targets != others) == (targets >= 0)).all()


# Training


def log_of(folder):
    header, *rows = (line.split(',') for line in (folder / 'log.csv').read_text().splitlines())
    return header, rows


def test_a_tiny_task_of_the_same_form_is_solved_to_100_percent(here, capsys):
    write_tiny(200)
    rows = train.train(train.Settings(**{**SMALL, 'n_embd': 32, 'batch_size': 32, 'max_steps': 250, 'learning_rate': 5e-3, 'eval_interval': 125}))[3]
    assert rows[0]['val_accuracy'] < 0.5 and rows[-1]['val_accuracy'] == 1
    assert len(re.findall(r'(?:val|test), all 200 examples, .* 100.00% right', capsys.readouterr().out)) == 2


def test_the_accuracies_at_the_end_are_those_of_one_unpadded_example_at_a_time(tiny, capsys):
    model, meta, folder, rows = train.train(train.Settings(**{**SMALL, 'max_steps': 30, 'learning_rate': 0.01, 'batch_size': 7}))
    said = re.findall(r'(\w+), all 60 examples, .*: loss (.*), (.*)% right; who always says (.), .* has (.*)%', capsys.readouterr().out)
    assert [split for split, *_ in said] == ['val', 'test']
    for split, loss, accuracy, label, rate in said:
        pieces = [torch.from_numpy(piece).long() for piece in read_back('tiny')[1][split]]
        logits = torch.stack([model(piece[None, :-1])[0][0, -1] for piece in pieces])
        labels = torch.stack([piece[-1] for piece in pieces])
        assert float(accuracy) == pytest.approx(100 * (logits.argmax(dim=1) == labels).double().mean().item(), abs=0.006)
        assert float(loss) == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), abs=6e-4)
        assert float(rate) == pytest.approx(100 * Counter(labels.tolist())[ZERO + int(label)] / 60, abs=0.006)
        assert Counter(labels.tolist()).most_common(1)[0][1] == Counter(labels.tolist())[ZERO + int(label)]
    header, log = log_of(folder)
    assert header == [*train.COLUMNS, 'val_accuracy'] and len(log) == len(rows) and 0 <= float(log[-1][-1]) <= 1


@pytest.mark.parametrize('wavelet', ['on', 'learnable', 'ema', 'past', 'off'])
def test_block_size_left_open_is_the_longest_example_and_every_variant_trains_on_it(tiny, wavelet):
    longest = max(len(piece) - 1 for pieces in read_back('tiny')[1].values() for piece in pieces)
    settings = prepare_data.read_settings(train.Settings, '', [f'--{name}={value}' for name, value in SMALL.items()] + [f'--wavelet={wavelet}'])
    assert settings.block_size == longest
    assert train.train(settings)[0].config.block_size == longest


def test_a_block_size_that_would_cut_examples_is_refused_with_the_fix(tiny):
    with pytest.raises(SystemExit, match='examples of up to 12 tokens, and block_size=11 would cut them: leave --block_size open'):
        train.train(train.Settings(**SMALL, block_size=11))
    assert not Path('out').exists()


def test_labelled_training_that_is_broken_off_and_resumed_equals_one_that_was_not(tiny, monkeypatch):
    settings = {**SMALL, 'dropout': 0.1}
    whole = train.train(train.Settings(**settings))
    clip = torch.nn.utils.clip_grad_norm_
    for step in (1, 3, 4):
        made = []

        def clip_and_stop(*words):
            made.append(1)
            if len(made) == step:
                signal.raise_signal(signal.SIGINT)
            return clip(*words)
        with monkeypatch.context() as patch, pytest.raises(SystemExit, match=f'stopped after step {step}'):
            patch.setattr(torch.nn.utils, 'clip_grad_norm_', clip_and_stop)
            train.main(train.Settings(**settings, run=f'b{step}'))
        again = train.train(prepare_data.read_settings(train.Settings, '', ['--resume', f'--run=b{step}']))
        assert all(torch.equal(a, b) for a, b in zip(whole[0].parameters(), again[0].parameters()))
        same = [[{**row, 'seconds': 0, 'tokens_per_s': 0} for row in rows] for rows in (whole[3], again[3])]
        assert same[0] == same[1]
        assert log_of(again[2])[0][-1] == 'val_accuracy'


# Nothing of a stranger's is believed


def test_damaged_descriptions_of_labelled_data_are_refused_in_one_sentence(tiny):
    path = Path('data/tiny/meta.json')
    meta = json.loads(path.read_text())
    for change in (dict(labels=None), dict(labels=[]), dict(labels=['0']), dict(labels='0123456789'), dict(labels=[0] * 10),
                   dict(labels=['\x1b[2J'] * 10), dict(labels=['x'] * 15), dict(modality='bytes'), dict(modality='pixels'),
                   dict(modality='music'), dict(modality='text', characters='abcdefghijklmno'), dict(vocab_size=16), dict(pieces=None),
                   dict(pieces={}), dict(pieces=dict(meta['pieces'], test=[])), dict(splits=dict(train=1, val=1)),
                   dict(pieces=dict(meta['pieces'], val=[1] * meta['splits']['val']))):
        path.write_text(json.dumps({**meta, **change}))
        for call in (lambda: train.train(train.Settings(**SMALL)), lambda: prepare_data.read_meta('tiny')):
            assert one_sentence(call), change
    for name in ('labels', 'pieces', 'splits'):
        path.write_text(json.dumps({key: value for key, value in meta.items() if key != name}))
        assert one_sentence(lambda: train.Settings(**SMALL))
    assert not Path('out').exists()


def test_40_mutated_descriptions_of_labelled_data_end_in_one_sentence_or_do_no_harm(tiny, monkeypatch):
    monkeypatch.setattr(prepare_data.os, 'fsync', lambda _: None)
    path = Path('data/tiny/meta.json')
    meta, rng = json.loads(path.read_text()), random.Random(4)
    refused = 0
    for n in range(40):
        path.write_text(json.dumps(mutated(meta, rng), default=str))
        refused += one_sentence(lambda: train.train(train.Settings(**{**SMALL, 'max_steps': 1, 'eval_windows': 1})))
    assert refused > 20


def test_an_example_that_does_not_end_in_a_label_is_refused(here):
    write_tiny()
    meta = json.loads(Path('data/tiny/meta.json').read_text())
    tokens = np.fromfile('data/tiny/train.bin', np.uint8)
    tokens[meta['pieces']['train'][0] - 1] = CLOSE
    tokens.tofile('data/tiny/train.bin')
    meta['checksums']['train'] = hashlib.sha256(tokens).hexdigest()
    Path('data/tiny/meta.json').write_text(json.dumps(meta))
    with pytest.raises(SystemExit, match='train.bin is not what meta.json says it is'):
        train.train(train.Settings(**SMALL))


# sample.py


def sampled(capsys, **settings):
    capsys.readouterr()
    sample.main(sample.Settings(**settings))
    return capsys.readouterr().out


def test_a_prompt_gets_its_likeliest_labels_and_the_right_one(tiny, capsys):
    train.train(train.Settings(**SMALL))
    out = sampled(capsys, prompt='[MAX 2 9 [MIN 4 7]0 ]')
    prompt = torch.tensor([[SYMBOLS.index(word) for word in '[MAX 2 9 [MIN 4 7 ] 0 ]'.split()]])
    found = re.fullmatch(r'\[MAX 2 9 \[MIN 4 7 \] 0 \] -> (\d) ([\d.]+)%, (\d) ([\d.]+)%, (\d) ([\d.]+)% \(right: 9\)\n', out)
    checkpoint, best = sample.load(Path('out/tiny-on/best.pt'))
    chances = best(prompt)[0][0, -1].softmax(dim=0)
    assert [int(found[n]) for n in (1, 3, 5)] == (chances[ZERO:].topk(3).indices).tolist()
    assert float(found[2]) == pytest.approx(100 * chances[ZERO:].max().item(), abs=0.06)


def test_without_a_prompt_test_examples_stand_beside_their_right_answers(tiny, capsys):
    train.train(train.Settings(**SMALL))
    lines = sampled(capsys).splitlines()
    for line, piece in zip(lines, read_back('tiny')[1]['test'][:5], strict=True):
        assert line.startswith(' '.join(SYMBOLS[token] for token in piece[:-1]) + ' -> ') and line.endswith(f'(right: {piece[-1] - ZERO})')
    write_tiny(61)
    with pytest.raises(SystemExit, match='data/tiny is not what this run learned'):
        sampled(capsys)


def test_of_fewer_than_five_test_examples_all_are_shown(tiny, capsys):
    tokens = np.array([0, 7, 8, 4, 8])
    meta = dict(modality='listops', vocab_size=len(SYMBOLS), labels=list('0123456789'))
    prepare_data.write_pieces('tiny', [(split, tokens) for split in ('train', 'val', 'test') for _ in range(3)], meta)
    train.train(train.Settings(**SMALL))
    assert len(sampled(capsys).splitlines()) == 3


@pytest.mark.parametrize('prompt, named', [('MAX 2 3', "'MAX' is not one of"), ('[MAX 1 2', 'not closed'), ('[MAX 1 2 ' + '3 ' * 40 + ']', '44 symbols'),
                                           ('\x1b[2J', 'not one of'), ('[MIN ]', 'holds no digit'), (' ', 'not one list')])
def test_a_prompt_that_is_no_expression_is_refused_in_one_sentence(tiny, capsys, prompt, named):
    train.train(train.Settings(**SMALL))
    with pytest.raises(SystemExit, match=named) as end:
        sampled(capsys, prompt=prompt)
    assert '\n' not in str(end.value)


@pytest.mark.parametrize('modality, labels', [('bytes', ['neg', 'pos']), ('pixels', ['cat', 'dog', 'frog'])])
def test_reviews_and_photos_are_labelled_too(here, capsys, modality, labels):
    rng = random.Random(0)
    pieces = [(split, np.array([*rng.choices(range(256), k=rng.randrange(1, 30)), 256 + rng.randrange(len(labels))]))
              for split in ('train', 'val', 'test') for _ in range(9)]
    prepare_data.write_pieces('tiny', pieces, dict(modality=modality, vocab_size=256 + len(labels), labels=labels))
    train.train(train.Settings(**SMALL))
    out = sampled(capsys)
    assert len(out.splitlines()) == 5 and out.isascii() and '\x1b' not in out
    if modality == 'bytes':
        assert re.fullmatch(r"'a \\u2019 film' -> (neg|pos) .*%, (neg|pos) .*% \n", sampled(capsys, prompt='a \u2019 film'))
        assert sampled(capsys, prompt='too long ' * 1000).startswith("'too long")
    else:
        with pytest.raises(SystemExit, match='pictures cannot be typed'):
            sampled(capsys, prompt='cat.png')


@pytest.mark.parametrize('settings', [None, {}, [], torch.zeros(3), dict(dataset='../tiny'), dict(dataset=3), dict(dataset='/etc')])
def test_a_checkpoint_that_names_no_data_or_data_elsewhere_reads_none(tiny, capsys, settings):
    train.train(train.Settings(**SMALL))
    path = Path('out/tiny-on/best.pt')
    torch.save({**torch.load(path, weights_only=True), 'settings': settings}, path)
    with pytest.raises(SystemExit, match='does not say which data'):
        sampled(capsys)


def test_what_the_help_says_of_sizes_and_defaults_is_so():
    comments = dict(re.findall(r'^    (\w+): .*?  # (.*)$', inspect.getsource(prepare_data.Settings), re.M))
    for function in prepare_data.prepare_listops, prepare_data.prepare_imdb:
        for name, parameter in inspect.signature(function).parameters.items():
            assert re.search(rf'\b{parameter.default}\b', comments[name]), name
    text = prepare_data.__doc__
    assert f'{prepare_data.HELD_OUT:,} others each' in comments['examples']
    assert f'{4 * prepare_data.REVIEWS:,} film reviews' in text and f'{6 * prepare_data.PICTURES:,} grey pictures' in text
    for name in 'text8', 'maestro', 'imdb', 'cifar10':
        megabytes = round(getattr(prepare_data, name.upper())['size'] / 1e6)
        assert re.search(rf'prepare_data.py {name} .*\({megabytes} MB', text), name


def test_every_option_that_is_given_arrives_also_a_seed_of_0(monkeypatch):
    asked = []
    monkeypatch.setitem(prepare_data.DATASETS, 'listops', lambda **options: asked.append(options))
    prepare_data.main(['listops', '--seed=0', '--examples=1', '--max_length=16'])
    prepare_data.main(['listops'])
    assert asked == [dict(seed=0, examples=1, max_length=16), {}]


def test_what_is_made_first_is_in_every_split_alike(here, monkeypatch):
    monkeypatch.setattr(prepare_data, 'HELD_OUT', 200)
    prepare_data.main(['listops', '--max_length=32', '--examples=700'])
    first = set(listops_chunk((1337, 0, 32)))
    for split, pieces in read_back('listops-32')[1].items():  # a chunk of three, give or take 5 standard deviations
        share = np.mean([piece.tobytes() in first for piece in pieces])
        assert abs(share - 1 / 3) < 5 * (2 / 9 / len(pieces)) ** 0.5, split


def test_the_reviews_held_out_for_validation_are_those_of_the_lowest_hashes(here, server, monkeypatch):
    serve(server, monkeypatch, 'IMDB', tar_of(REVIEWS))
    prepare_data.main(['imdb'])
    training = sorted((name for name in REVIEWS if 'train' in name), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    splits = read_back('imdb')[1]
    for split, names in dict(val=training[:4], train=training[4:]).items():
        assert [bytes(piece[:-1].tolist()) for piece in splits[split]] == [REVIEWS[name] for name in names]


def test_the_classes_of_cifar10_are_in_the_order_of_the_alphabet_as_its_authors_numbered_them(here, server, monkeypatch):
    serve(server, monkeypatch, 'CIFAR10', tar_of({name: records.tobytes() for name, records in PICTURES.items()}))
    prepare_data.main(['cifar10'])
    labels = read_back('cifar10')[0]['labels']
    assert labels == sorted(labels) and len(set(labels)) == 10


def test_options_that_labelled_data_have_no_use_for_are_named(tiny):
    train.train(train.Settings(**SMALL))
    settings = prepare_data.read_settings(sample.Settings, '', ['--temperature=0.5', '--prompt=[MAX 1 2 ]'])
    with pytest.raises(SystemExit, match='--temperature is for runs that write text, music or sound'):
        sample.main(settings)
