"""Long Range Arena on its way to disk: made by its rules or read from its archives."""

import io
import tarfile
from collections import Counter

import numpy as np
import pytest

import prepare_data
from prepare_data import SYMBOLS, listops_answer, prepare_listops
from test_data import prepared

def evaluated(words, counts, depth=1):
    """The value of a list by recursion: takes its words, counts arguments and depths."""
    word = words.pop(0)
    counts['depth', depth] += 1
    if word.isdigit():
        return int(word)
    values = []
    while words[0] != ']':
        values.append(evaluated(words, counts, depth + 1))
    words.pop(0)
    n = len(values)
    counts['arguments', n] += 1
    values.sort()
    return {'[MIN': values[0], '[MAX': values[-1], '[SM': sum(values) % 10,
            '[MED': (values[(n - 1) // 2] + values[n // 2]) // 2}[word]

def test_lists_follow_the_rules_have_their_answers_and_are_all_different(here):
    prepare_listops(512, examples=400, held_out=100)
    meta, splits = prepared('listops-512')
    assert meta['vocab_size'] == 25 and meta['labels'] == list('0123456789')
    assert meta['splits'] == dict(train=400, val=100, test=100)
    rows, counts = np.concatenate(list(splits.values())), Counter()  # (600, W)
    lengths = (rows >= 15).argmax(axis=1)
    for row, length in zip(rows, lengths):
        answer = evaluated([SYMBOLS[token] for token in row[:length]], counts)
        assert row[length] == 15 + answer and not row[length + 1:].any()
    assert 128 < lengths.min() and lengths.max() + 1 == meta['width'] <= 512
    assert len(set(map(bytes, rows))) == 600 and len(set(rows[range(600), lengths])) == 10
    assert abs(lengths[:400].mean() - lengths[400:].mean()) < 30  # shuffled
    assert max(number for what, number in counts if what == 'depth') <= 10
    arguments = [counts['arguments', n] for n in range(2, 11)]
    assert max(arguments) < 1.3 * min(arguments) and counts['arguments', 11] == 0

def test_the_seed_decides_the_lists(here):
    found = []
    for seed in (3, 3, 4):
        prepare_listops(32, examples=50, held_out=20, seed=seed)
        found.append(prepared('listops-32')[0]['checksums'])
    assert found[0] == found[1] and all(found[0][split] != found[2][split] for split in found[0])

@pytest.mark.parametrize('text', ['', ']', '[MIN ]', '[MIN 1 2', '1 2', '[MIN 1 ] ]', '[MIN 1 ] 2'])
def test_what_is_no_list_has_no_value(text):
    with pytest.raises(ValueError):
        listops_answer([SYMBOLS.index(word) for word in text.split()])

REVIEWS = {f'aclImdb/{split}/{kind}/{n}_{1 + 9 * (kind == "pos")}.txt':
           f'{split} {kind} {n}: caf\xe9 '.encode() * (1 + 3 * n)
           for split in ('test', 'train') for kind in ('neg', 'pos') for n in range(20)}
PICTURES = {f'cifar-10-batches-bin/{name}.bin':
            np.random.default_rng(n).integers(0, 256, (10, 3073), np.uint8)
            for n, name in enumerate(['test_batch', *(f'data_batch_{n}' for n in (3, 1, 5, 2, 4))])}
for records in PICTURES.values():
    records[:, 0] %= 10

def tar_of(members):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode='w:gz') as file:
        for path, data in {**members, 'aclImdb/train/unsup/1_0.txt': b'x', '../evil': b'x'}.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return archive.getvalue()

@pytest.mark.parametrize('longest', [None, 100])
def test_imdb_is_read_as_bytes_cut_and_split_as_its_authors_did(here, server, longest):
    server.offer('IMDB', tar_of(REVIEWS), 'a.tar.gz')
    prepare_data.main(['imdb'] + ([f'--max_length={longest}'] if longest else []))
    meta, splits = prepared(f'imdb-{longest}' if longest else 'imdb')
    assert meta['vocab_size'] == 258 and meta['splits'] == dict(train=36, val=4, test=40)
    found = {split: Counter() for split in splits}
    for split, rows in splits.items():
        for row, length in zip(rows, (rows >= 256).argmax(axis=1)):
            found[split][bytes(row[:length].tolist()), meta['labels'][row[length] - 256]] += 1
            assert not row[length + 1:].any()
    for split, official in dict(test=found['test'], train=found['train'] + found['val']).items():
        assert official == Counter((data[:longest or 4096], path.split('/')[2])
                                   for path, data in REVIEWS.items() if f'/{split}/' in path)

def test_cifar10_is_read_in_grey_and_in_the_order_of_its_files(here, server):
    archive = tar_of({path: data.tobytes() for path, data in PICTURES.items()})
    server.offer('CIFAR10', archive, 'a.tar.gz')
    prepare_data.main(['cifar10'])
    meta, splits = prepared('cifar10')
    assert meta['splits'] == dict(train=45, val=5, test=10)
    rows = np.concatenate([splits[split] for split in ('train', 'val', 'test')])  # (60, 1025)
    records = np.concatenate([PICTURES[path] for path in sorted(PICTURES)])
    grey = np.einsum('c,ncp->np', [0.299, 0.587, 0.114], records[:, 1:].reshape(-1, 3, 1024))
    assert np.abs(rows[:, :1024] - grey).max() < 0.5001
    assert (rows[:, 1024] == 256 + records[:, 0].astype(int)).all()
    assert meta['labels'][3] == 'cat' and [path.name for path in here.iterdir()] == ['data']
