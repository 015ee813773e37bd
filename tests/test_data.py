"""Text on its way to disk: nothing lost, nothing shared between the splits, nothing half-written, nothing unchecked."""

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import prepare_data
from conftest import ROOT
from prepare_data import decode_text, encode_text, text8_alphabet


def read_back(name):
    folder = Path('data') / name
    meta = json.loads((folder / 'meta.json').read_text())
    dtype = np.uint8 if meta['vocab_size'] <= 256 else np.uint16
    return meta, {split: np.fromfile(folder / f'{split}.bin', dtype) for split in meta['splits']}


@pytest.mark.parametrize('text', ['To be, or not to be\r\n' * 99, 'žluťoučký kůň\t😀 日本\n' * 99, ''.join(map(chr, range(32, 1400)))])
def test_any_utf8_text_comes_back_exactly(here, text):
    (here / 'a.txt').write_bytes(text.encode())
    prepare_data.main(['--input', 'a.txt', '--name', 'a'])
    meta, splits = read_back('a')
    assert ''.join(decode_text(splits[split], meta['characters']) for split in ('train', 'val', 'test')) == text
    assert {split: len(tokens) for split, tokens in splits.items()} == meta['splits']
    assert meta['sha256'] == hashlib.sha256(text.encode()).hexdigest()
    assert abs(len(splits['train']) - 0.9 * len(text)) <= 1 and abs(len(splits['val']) - len(splits['test'])) <= 1


def test_several_files_are_read_in_the_order_given(here):
    for name in 'ba':
        (here / f'{name}.txt').write_text(name * 600)
    prepare_data.main(['--input', 'b.txt', 'a.txt', '--name=ba'])
    meta, splits = read_back('ba')
    assert decode_text(splits['train'], meta['characters']).startswith('b' * 600 + 'a')


def test_the_default_is_the_standard_library_and_no_file_is_on_both_sides(here, monkeypatch):
    library = here / 'lib'
    for n in range(40):
        file = library / f'package{n % 4}' / f'module{n}.py'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f'# file {n} begins\n' + 'x = 1\n' * n + f'# file {n} ends\n')
    for hidden in ('test/a.py', 'package1/tests/b.py', 'site-packages/c.py'):
        (library / hidden).parent.mkdir(parents=True, exist_ok=True)
        (library / hidden).write_text('# not this one')
    monkeypatch.setattr(prepare_data.sysconfig, 'get_path', lambda name: str(library))
    prepare_data.main([])
    meta, splits = read_back('stdlib')
    train, val = (decode_text(splits[split], meta['characters']) for split in ('train', 'val'))
    begun = [set(re.findall(r'file (\d+) begins', text)) for text in (train, val)]
    ended = [set(re.findall(r'file (\d+) ends', text)) for text in (train, val)]
    assert begun == ended and not begun[0] & begun[1] and len(begun[0] | begun[1]) == 40 and len(begun[1]) == 4
    assert 'not this one' not in train + val
    first = splits['train']
    prepare_data.main([])
    assert np.array_equal(read_back('stdlib')[1]['train'], first)  # the order is fixed


def test_the_text8_alphabet_spells_digits_and_keeps_27_characters():
    assert text8_alphabet('In 1984,\n  Über-Straße 7!') == 'in one nine eight four ber stra e seven '
    assert set(text8_alphabet(''.join(map(chr, range(3000))))) == set(' abcdefghijklmnopqrstuvwxyz')


def test_alphabet_text8_makes_27_tokens_of_any_text(here):
    (here / 'a.txt').write_text('Act 1. Scene 2!\n' * 100)
    prepare_data.main(['--input', 'a.txt', '--name=a', '--alphabet=text8'])
    meta, splits = read_back('a')
    assert meta['vocab_size'] == 27
    assert decode_text(splits['train'], meta['characters']).startswith('act one scene two act one')


def test_an_unknown_character_is_named_with_the_alphabet():
    with pytest.raises(ValueError, match="'xz' is not in the alphabet 'abc'"):
        encode_text('abzcax', 'abc')


def test_a_file_that_is_not_utf8_is_named_and_leaves_nothing(here):
    (here / 'a.txt').write_bytes(b'caf\xe9 ' * 400)
    with pytest.raises(SystemExit, match='a.txt is not UTF-8 .byte 3 is 0xe9'):
        prepare_data.main(['--input', 'a.txt', '--name=a'])
    assert not (here / 'data').exists()


@pytest.mark.parametrize('n', [0, 999])
def test_too_little_text_is_refused(here, n):
    (here / 'a.txt').write_text('ab' * (n // 2) + 'a' * (n % 2))
    with pytest.raises(SystemExit, match=f'{n} characters are too few'):
        prepare_data.main(['--input', 'a.txt', '--name=a'])


def test_a_text_of_one_character_is_refused(here):
    (here / 'a.txt').write_text('a' * 2000)
    with pytest.raises(SystemExit, match="'a' is its only character"):
        prepare_data.main(['--input', 'a.txt', '--name=a'])


def test_a_disk_that_fails_leaves_no_half_file_and_the_data_that_were_there(here, monkeypatch):
    (here / 'a.txt').write_text('abc' * 999)
    prepare_data.main(['--input', 'a.txt', '--name=a'])

    def full(_):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(prepare_data.os, 'fsync', full)
    with pytest.raises(SystemExit, match='No space left'):
        prepare_data.main(['--input', 'a.txt', '--name=a'])
    assert not list(here.glob('data/a/*.part'))
    prepare_data.read_tokens('a', 'train', prepare_data.read_meta('a'))


def test_two_programs_that_prepare_the_same_at_the_same_time_do_not_disturb_each_other(here, monkeypatch):
    (here / 'a.txt').write_text('abc' * 999)
    sync, getpid = prepare_data.os.fsync, prepare_data.os.getpid

    def other_program_meanwhile(file):
        with monkeypatch.context() as patch:
            patch.setattr(prepare_data.os, 'fsync', sync)
            patch.setattr(prepare_data.os, 'getpid', lambda: getpid() + 1)
            prepare_data.main(['--input', 'a.txt', '--name=a'])
        prepare_data.read_tokens('a', 'train', prepare_data.read_meta('a'))
        sync(file)
    monkeypatch.setattr(prepare_data.os, 'fsync', other_program_meanwhile)
    prepare_data.main(['--input', 'a.txt', '--name=a'])
    assert len(prepare_data.read_tokens('a', 'val', prepare_data.read_meta('a'))) > 0
    assert sorted(path.name for path in (here / 'data/a').iterdir()) == ['meta.json', 'test.bin', 'train.bin', 'val.bin']


def test_data_of_which_only_a_part_was_written_anew_are_refused(here, monkeypatch):
    (here / 'a.txt').write_text('abc' * 999)
    prepare_data.main(['--input', 'a.txt', '--name=a'])
    (here / 'a.txt').write_text('cab' * 999)
    write = prepare_data.write_aside
    monkeypatch.setattr(prepare_data, 'write_aside', lambda path, data: write(path, data) if path.name == 'train.bin' else sys.exit('stopped'))
    with pytest.raises(SystemExit, match='stopped'):
        prepare_data.main(['--input', 'a.txt', '--name=a'])
    with pytest.raises(SystemExit, match='train.bin is not what meta.json says it is: prepare a again'):
        prepare_data.read_tokens('a', 'train', prepare_data.read_meta('a'))


def test_a_name_that_the_console_cannot_show_is_no_reason_to_fail(here):
    (here / 'a.txt').write_text('abc' * 999)
    done = subprocess.run([sys.executable, ROOT / 'prepare_data.py', '--input', 'a.txt', '--name=žluť'], capture_output=True,
                          env={**os.environ, 'PYTHONIOENCODING': 'ascii'})
    assert done.returncode == 0 and b'data/?lu?: train' in done.stdout and (here / 'data/žluť/meta.json').exists()


@pytest.mark.parametrize('words, named', [
    (['txt8'], ["'txt8'", 'did you mean text8']),
    (['--input', 'missing.txt'], ['missing.txt', '--name']),
    (['--input', __file__, '--name', '../up', '--alphabet=text9'], ['../up', 'text9']),
    (['--nam=a', '--alphabt=text8'], ['did you mean name', 'did you mean alphabet']),
    (['text8', '--input', __file__, '--name=text8'], ['choose one', 'taken']),
    (['--name'], ['--name needs a value']),
    (['--dataset=text8'], ['--dataset=text8 is not a setting; write text8 alone']),
    ([''], [' dataset needs a value']),
    (['--input', __file__, '--name=listops-64'], ['taken']),
    (['--input', __file__, '--name=STDLIB'], ['taken']),
    (['--input', __file__, '--name=a', '--input', __file__], ['--input is given 2 times']),
])
def test_every_mistake_on_the_command_line_is_named_in_one_message(here, words, named):
    with pytest.raises(SystemExit) as error:
        prepare_data.main(words)
    assert all(word in str(error.value) for word in named)
    assert not (here / 'data').exists()


# --- downloads, from a server on this machine


@pytest.fixture
def text8(here, server, monkeypatch):
    """A small text8.zip of the real layout on the server, with its own size and checksum."""
    server.text = 'one two three ' * 2000
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, 'w', zipfile.ZIP_DEFLATED) as file:
        file.writestr('text8', server.text)
    server.content = archive.getvalue()
    monkeypatch.setattr(prepare_data, 'TEXT8', dict(url=server.url, size=len(server.content),
                                                    sha256=hashlib.sha256(server.content).hexdigest()))
    monkeypatch.setattr(prepare_data.time, 'sleep', lambda _: None)
    return server


def assert_text8_is_whole(text):
    meta, splits = read_back('text8')
    assert meta['vocab_size'] == 27 and meta['splits'] == dict(train=25200, val=1400, test=1400)
    assert ''.join(decode_text(splits[split], meta['characters']) for split in ('train', 'val', 'test')) == text


def test_text8_is_downloaded_checked_and_split_90_5_5(text8):
    prepare_data.main(['text8'])
    assert_text8_is_whole(text8.text)
    prepare_data.main(['text8'])
    assert text8.requests == 1  # not fetched twice


@pytest.mark.parametrize('ranges', [True, False])
def test_a_broken_connection_is_resumed_or_redone(text8, ranges, here):
    part = here / 'data/text8/text8.zip.part'
    part.parent.mkdir(parents=True)
    part.write_bytes(text8.content[:50])
    text8.ranges = ranges
    text8.drop_after = len(text8.content) - 70 if ranges else None
    prepare_data.main(['text8'])
    assert_text8_is_whole(text8.text)
    assert text8.requests == (2 if ranges else 1) and not part.exists()


def test_a_connection_that_always_breaks_at_the_same_place_ends_in_one_sentence(text8, here):
    text8.ranges, text8.drop_after = False, 20
    with pytest.raises(SystemExit, match='broke after 20 of .* by hand and put it at data/text8/text8.zip'):
        prepare_data.main(['text8'])
    assert not (here / 'data/text8/meta.json').exists()


def test_a_wrong_checksum_is_refused_and_not_kept(text8, here):
    text8.content = text8.content[:100] + b'!' + text8.content[101:]
    with pytest.raises(SystemExit, match='has not the size .* and the sha256'):
        prepare_data.main(['text8'])
    assert [file.name for file in (here / 'data/text8').iterdir()] == []


def test_a_part_file_with_wrong_bytes_is_thrown_away_and_fetched_anew(text8, here):
    part = here / 'data/text8/text8.zip.part'
    part.parent.mkdir(parents=True)
    part.write_bytes(b'not the beginning of it')
    prepare_data.main(['text8'])
    assert_text8_is_whole(text8.text)


@pytest.mark.parametrize('end', [b'', b'!'])
def test_a_broken_file_put_there_by_hand_is_replaced(text8, here, end):
    path = here / 'data/text8/text8.zip'
    path.parent.mkdir(parents=True)
    path.write_bytes(text8.content[:-1] + end)  # too short, or of the right size
    prepare_data.main(['text8'])
    assert_text8_is_whole(text8.text)
    assert text8.requests == 1 and path.read_bytes() == text8.content


def test_a_reader_that_is_gone_ends_the_program_in_one_sentence(here):
    (here / 'book.txt').write_text('once upon a time there was a book\n' * 300)
    reads, writes = os.pipe()
    os.close(reads)  # as head does when it has seen enough
    done = subprocess.run([sys.executable, '-u', ROOT / 'prepare_data.py', '--input', 'book.txt', '--name', 'book'], stdout=writes,
                          stderr=subprocess.PIPE, text=True)
    os.close(writes)
    assert done.returncode == 1 and done.stderr == 'stopped: nobody reads any longer what is printed\n'


def test_a_reader_that_is_gone_is_not_taken_for_a_broken_connection_or_archive(text8, here, monkeypatch):
    def nobody_reads(*words, **_):
        raise BrokenPipeError(32, 'Broken pipe')
    monkeypatch.setattr('builtins.print', nobody_reads)
    with pytest.raises(BrokenPipeError):
        prepare_data.main(['text8'])
    (here / 'archive.zip').write_bytes(text8.content)
    with pytest.raises(BrokenPipeError), prepare_data.opened(here / 'archive.zip'):
        print()


def test_an_archive_that_cannot_be_read_is_named_in_one_sentence(text8, here, monkeypatch):
    path = here / 'data/text8/text8.zip'
    path.mkdir(parents=True)  # a folder: which cannot be read even by the root user
    monkeypatch.setitem(prepare_data.TEXT8, 'size', path.stat().st_size)
    with pytest.raises(SystemExit, match='could not read data/text8/text8.zip: '):
        prepare_data.main(['text8'])


def test_offline_says_what_to_fetch_and_where_to_put_it(text8, here, monkeypatch):
    url = 'http://127.0.0.1:9/text8.zip'  # nobody listens there
    monkeypatch.setitem(prepare_data.TEXT8, 'url', url)
    with pytest.raises(SystemExit, match=f'could not get {url}: .*Download {url} by hand and put it at data/text8/text8.zip'):
        prepare_data.main(['text8'])
    path = here / 'data/text8/text8.zip'
    path.write_bytes(text8.content)
    prepare_data.main(['text8'])
    assert_text8_is_whole(text8.text)


def test_a_byte_order_mark_is_no_character_of_any_file(here):
    for name in 'ab':
        (here / f'{name}.txt').write_text(name * 600, encoding='utf-8-sig')
    prepare_data.main(['--input', 'a.txt', 'b.txt', '--name=ab'])
    assert read_back('ab')[0]['characters'] == 'ab'


def test_as_many_characters_as_16_bits_can_tell_apart_come_back_and_one_more_is_refused(here):
    text = ''.join(map(chr, range(0x10000, 0x20001)))
    (here / 'a.txt').write_text(text[:-1], encoding='utf-8')
    prepare_data.main(['--input', 'a.txt', '--name=a'])
    meta, splits = read_back('a')
    assert ''.join(decode_text(splits[split], meta['characters']) for split in ('train', 'val', 'test')) == text[:-1]
    (here / 'a.txt').write_text(text, encoding='utf-8')
    with pytest.raises(SystemExit, match='65,537 different characters'):
        prepare_data.main(['--input', 'a.txt', '--name=a'])


def test_half_a_character_from_a_broken_console_is_named_like_any_other():
    with pytest.raises(ValueError, match=r"'\\udcff' is not in the alphabet 'abc'"):
        encode_text('ab\udcff', 'abc')


def test_of_the_library_the_hash_of_the_names_holds_files_out_wherever_python_lies(here, monkeypatch):
    library = here / 'tests' / 'lib'
    names = [f'package{n // 10}/module{n}.py' for n in range(40)]
    for name in (*names, *(f'{folder}/a.py' for folder in ('test', 'b/tests', 'c/idle_test', 'site-packages', 'dist-packages', '__pycache__'))):
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        (library / name).write_bytes(f'# {name} '.encode() + b'caf\xe9\n')  # not UTF-8: no reason to fail
    (library / 'folder.py').mkdir()
    (library / 'sitecustomize.py').symlink_to(here / 'nothing')
    monkeypatch.setattr(prepare_data.sysconfig, 'get_path', lambda name: str(library))
    prepare_data.main([])
    meta, splits = read_back('stdlib')
    by_hash = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    for split, expected in dict(train=by_hash[:36], val=by_hash[36:]).items():
        assert decode_text(splits[split], meta['characters']) == ''.join(f'# {name} caf\ufffd\n' for name in expected)


def test_a_python_without_its_source_is_told_from_one_with_it(here, monkeypatch):
    monkeypatch.setattr(prepare_data.sysconfig, 'get_path', lambda name: str(here))
    with pytest.raises(SystemExit, match='came without its source; use --input FILE --name NAME'):
        prepare_data.main([])


def test_a_part_file_that_is_whole_is_not_fetched_again(text8, here):
    part = here / 'data/text8/text8.zip.part'
    part.parent.mkdir(parents=True)
    part.write_bytes(text8.content)
    prepare_data.main(['text8'])
    assert_text8_is_whole(text8.text)
    assert text8.requests == 0
