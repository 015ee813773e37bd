"""Text and downloads on their way to disk: nothing lost, nothing half-written."""

import hashlib
import io
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

import prepare_data
from conftest import ROOT
from prepare_data import decode_text, read_meta, read_tokens
from sample import write_midi

SCRIPT = [sys.executable, '-u', ROOT / 'prepare_data.py']

def prepared(name):
    meta = read_meta(name)
    return meta, {split: read_tokens(name, split, meta) for split in meta['splits']}

def text_of(name):
    meta, splits = prepared(name)
    return ''.join(decode_text(tokens, meta['characters']) for tokens in splits.values())

def prepare(data, name='a', *options):
    Path('a.txt').write_bytes(data)
    prepare_data.main(['--input', 'a.txt', '--name', name, *options])

@pytest.mark.parametrize('text', ['To be, or not to be\r\n' * 99, 'carriage return\r' * 99,
                                  'žluťoučký kůň\t😀 日本\n' * 99, ''.join(map(chr, range(32, 1400)))])
def test_any_text_comes_back_exactly_and_is_split_90_5_5(here, text):
    prepare(text.encode())
    meta, splits = prepared('a')
    assert text_of('a') == text
    assert {split: len(tokens) for split, tokens in splits.items()} == meta['splits']
    assert abs(len(splits['train']) - 0.9 * len(text)) <= 1
    assert abs(len(splits['val']) - len(splits['test'])) <= 1
    assert splits['val'].dtype == (np.uint8 if len(set(text)) <= 256 else np.uint16)
    assert isinstance(splits['val'], np.memmap) and not splits['val'].flags.writeable

def test_files_are_read_in_the_order_given_and_a_byte_order_mark_is_no_character(here):
    for letter in 'ba':
        Path(f'{letter}.txt').write_text(letter * 600, encoding='utf-8-sig')
    prepare_data.main(['--input', 'b.txt', 'a.txt', '--name=ba'])
    assert text_of('ba') == 'b' * 600 + 'a' * 600

@pytest.mark.parametrize('text', ['A text of a word processor.\n', 'Война и мир, том первый.\n'])
@pytest.mark.parametrize('encoding', ['utf-16', 'utf-16-le', 'utf-16-be'])
def test_utf16_is_refused_by_its_name(here, encoding, text):
    for mark in '', '\ufeff':
        with pytest.raises(SystemExit, match='UTF-16'):
            prepare((mark + text).encode(encoding) * 99)
    assert not Path('data').exists()

@pytest.mark.parametrize('data', [b'caf\xe9 ' * 400, b'', b'ab' * 499])
def test_text_that_is_too_short_or_not_utf8_leaves_nothing(here, data):
    with pytest.raises(SystemExit):
        prepare(data)
    assert not Path('data').exists()

def test_alphabet_text8_spells_digits_and_has_27_characters(here):
    prepare('In 1984,\n  Über-Straße 7! '.encode() * 99, 'a', '--alphabet=text8')
    assert text_of('a') == 'in one nine eight four ber stra e seven ' * 99
    assert read_meta('a')['vocab_size'] == 27

@pytest.mark.parametrize('vocab_size, token', [(256, 256), (5, 5), (5, -1), (100_000, 65_536)])
def test_tokens_that_do_not_fit_are_refused_and_leave_nothing(here, vocab_size, token):
    with pytest.raises(ValueError):
        prepare_data.write_dataset('a', dict(train=[0, token]), dict(vocab_size=vocab_size))
    assert not Path('data').exists()

def test_the_standard_library_is_split_by_the_hash_of_its_names(here, monkeypatch):
    names = [f'package{n // 10}/module{n}.py' for n in range(40)]
    others = ['test/a.py', 'b/tests/a.py', 'site-packages/a.py', '__pycache__/a.py', 'notes.txt']
    for name in names + others:
        file = here / 'tests' / 'lib' / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(f'# {name} '.encode() + b'caf\xe9\n')  # not UTF-8: no reason to fail
    monkeypatch.setattr('sysconfig.get_path', lambda _: str(here / 'tests' / 'lib'))
    prepare_data.main([])
    meta, splits = prepared('stdlib')
    names.sort(key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    for split, expected in dict(train=names[:36], val=names[36:]).items():
        text = ''.join(f'# {name} caf\ufffd\n' for name in expected)
        assert decode_text(splits[split], meta['characters']) == text

@pytest.mark.parametrize('name, command', [('text8', ' text8'), ('mine', '--name mine'),
                                           ('listops-64', ' listops --max_length=64')])
@pytest.mark.parametrize('meta', [None, '{}', '[1]', '{"format": 1}', 'damaged'])
def test_data_of_another_format_are_refused_with_their_command(here, name, command, meta):
    if meta:
        prepare_data.write_aside(f'data/{name}/meta.json', meta.encode())
    with pytest.raises(SystemExit, match=f'{command}$'):
        read_meta(name)

def test_tokens_that_are_not_those_of_meta_json_are_refused(here):
    prepare(b'abc' * 999)
    meta, path = read_meta('a'), Path('data/a/val.bin')
    for data in (b'', path.read_bytes()[:-1], path.read_bytes()[:-1] + b'\1\1', None):
        path.write_bytes(data) if data is not None else path.unlink()
        with pytest.raises(SystemExit, match='--name a'):
            read_tokens('a', 'val', meta)
    assert len(read_tokens('a', 'train', meta)) == 2697

def test_a_full_disk_ends_in_one_sentence_and_leaves_what_was_there(here):
    resource = pytest.importorskip('resource')  # not on Windows
    prepare(b'abc' * 999)
    before = {path: path.read_bytes() for path in Path('data').rglob('*.*')}
    Path('a.txt').write_bytes(b'cab' * 999)
    done = subprocess.run(
        [*SCRIPT, '--input', 'a.txt', '--name=a'], capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)))
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert {path: path.read_bytes() for path in Path('data').rglob('*.*')} == before

@pytest.mark.skipif(os.name == 'nt', reason='Windows has other signals')
def test_ctrl_c_ends_in_one_sentence_and_leaves_nothing(here):
    # a shell's background jobs inherit that it is ignored; all imports are done before the line
    start = ('import runpy, signal, sys; sys.path.insert(0, sys.argv.pop(1)); import prepare_data\n'
             'signal.signal(signal.SIGINT, signal.default_int_handler); print(flush=True)\n'
             'runpy.run_path(prepare_data.__file__, run_name="__main__")')
    process = subprocess.Popen([sys.executable, '-c', start, ROOT, 'listops'], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=30)[1]
    assert process.returncode == 1 and len(error.splitlines()) == 1 and not Path('data').exists()

def test_a_reader_that_is_gone_ends_the_program_quietly(here):
    Path('a.txt').write_bytes(b'abc' * 999)
    reads, writes = os.pipe()
    os.close(reads)  # as head does when it has seen enough
    done = subprocess.run([*SCRIPT, '--input', 'a.txt', '--name=a'], stdout=writes,
                          stderr=subprocess.PIPE, text=True)
    os.close(writes)
    assert 'Traceback' not in done.stderr

@pytest.mark.parametrize('words', [
    ['txt8'], ['text8', '--name=a'], ['--input', 'a.txt'], ['--name=a'], ['imdb', '--max_length=0'],
    ['--input', 'a.txt', '--midi', '.', '--name=a'], ['text8', '--wav', '.', '--name=a'],
    ['--input', 'a.txt', '--name', '../up'], ['--input', 'a.txt', '--name=text8'],
    ['--input', 'missing.txt', '--name=a'], ['--midi', 'missing', '--name=a'], ['--nam'],
])
def test_a_mistake_on_the_command_line_stops_before_anything_is_written(here, words):
    Path('a.txt').write_bytes(b'abc' * 999)
    with pytest.raises(SystemExit) as end:
        prepare_data.main(words)
    assert end.value.code not in (0, None) and not Path('data').exists()

@pytest.fixture
def text8(here, server):
    """A small text8.zip of the real layout on the server, with its own checksum."""
    server.text, archive = 'one two three ' * 2000, io.BytesIO()
    with zipfile.ZipFile(archive, 'w', zipfile.ZIP_DEFLATED) as file:
        file.writestr('text8', server.text)
    server.offer('TEXT8', archive.getvalue(), 'text8.zip')
    return server

def test_text8_is_downloaded_once_and_split_in_its_order(text8):
    for _ in range(2):
        prepare_data.main(['text8'])
    assert text_of('text8') == text8.text and text8.requests == 1
    assert read_meta('text8')['splits'] == dict(train=25200, val=1400, test=1400)
    assert read_meta('text8')['vocab_size'] == 27 and not list(Path('data').rglob('*.part'))

@pytest.mark.parametrize('fault', ['broken off', 'wrong byte'])
def test_a_download_that_is_not_the_right_file_leaves_nothing(text8, fault):
    right = text8.content
    if fault == 'broken off':
        text8.drop_after = len(right) - 70
    else:
        text8.content = right[:99] + bytes([right[99] ^ 1]) + right[100:]
    with pytest.raises(SystemExit, match='by hand'):
        prepare_data.main(['text8'])
    assert not list(Path('.').rglob('*.*'))
    text8.content, text8.drop_after = right, None
    prepare_data.main(['text8'])
    assert text_of('text8') == text8.text

def test_offline_it_says_what_to_fetch_and_where_to_put_it(text8, monkeypatch):
    url = 'http://127.0.0.1:9/text8.zip'  # nobody listens there
    monkeypatch.setitem(prepare_data.TEXT8, 'url', url)
    for content in (text8.content[:-1] + b'!', text8.content):  # what is there is checked
        prepare_data.write_aside('data/text8/text8.zip', content)
        if content != text8.content:
            with pytest.raises(SystemExit, match=f'data/text8/text8.zip.*{url}'):
                prepare_data.main(['text8'])
    prepare_data.main(['text8'])
    assert text_of('text8') == text8.text and text8.requests == 0

def test_maestro_is_split_by_its_own_table(here, server):
    archive, wanted = io.BytesIO(), dict(train=[], val=[], test=[])
    table = 'canonical_title,split,year,midi_filename\n'
    with zipfile.ZipFile(archive, 'w') as file:
        for n, split in enumerate(['train', 'test', 'validation', 'train', 'train']):
            data = write_midi([(0, 1, 60 + n, 64)])
            file.writestr(f'maestro-v3.0.0/{n}/{n}.midi', data)
            table += f'"Sonata, in ""3"" movements",{split},2004,{n}/{n}.midi\n'
            wanted[split.replace('validation', 'val')] += prepare_data.music_tokens(data).tolist()
        file.writestr('../outside.midi', data)
        file.writestr('maestro-v3.0.0/maestro-v3.0.0.csv', table)
    server.offer('MAESTRO', archive.getvalue(), 'maestro.zip')
    prepare_data.main(['maestro'])
    assert {split: tokens.tolist() for split, tokens in prepared('maestro')[1].items()} == wanted
    assert [path.name for path in here.iterdir()] == ['data']
