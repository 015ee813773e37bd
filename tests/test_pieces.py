"""Music and sound from archives and folders to training and back to files that others can play."""

import csv
import hashlib
import io
import json
import random
import re
import sys
import wave
import zipfile
from pathlib import Path

import numpy as np
import pytest

import prepare_data
import sample
import train
from prepare_data import encode_notes, mu_law_encode, read_midi
from sample import decode_notes, mu_law_decode, write_midi, write_wav

SMALL = dict(n_layer=2, n_head=2, n_embd=16, block_size=32, batch_size=4, max_steps=3, eval_interval=3, eval_windows=4, device='cpu')


def tune(seed, n=40):
    """A short MIDI file of n notes."""
    rng = random.Random(seed)
    return write_midi([(k / 10, k / 10 + 0.1, rng.randrange(40, 80), rng.randrange(1, 128)) for k in range(n)])


def sound(seed, seconds=0.1, rate=16000):
    time = np.arange(int(seconds * rate)) / rate
    return write_wav(0.5 * np.sin(2 * np.pi * (200 + 50 * seed) * time), rate)


def read_back(name):
    meta = json.loads(Path('data', name, 'meta.json').read_text())
    dtype = np.uint8 if meta['vocab_size'] <= 256 else np.uint16
    splits = {}
    for split, lengths in meta['pieces'].items():
        tokens = np.fromfile(Path('data', name, f'{split}.bin'), dtype)
        assert len(tokens) == sum(lengths) == meta['splits'][split]
        splits[split] = np.split(tokens, np.cumsum(lengths)[:-1]) if lengths else []
    return meta, splits


def zip_of(members):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, 'w') as file:
        for name, data in members.items():
            file.writestr(name, data)
    return archive.getvalue()


def test_maestro_is_split_by_its_own_table(here, server, monkeypatch):
    table, members = io.StringIO(), {}
    writer = csv.writer(table)
    writer.writerow('canonical_composer,canonical_title,split,year,midi_filename,audio_filename,duration'.split(','))
    wanted = dict(train=[], val=[], test=[])
    for n, split in enumerate(['train', 'test', 'validation', 'train', 'train']):
        name = f'20{n:02}/piece_{n}.midi'
        writer.writerow(['A. Composer', 'Sonata, in 3 movements, "with commas"', split, 2000 + n, name, name, 4.0])
        members['maestro-v3.0.0/' + name] = tune(n)
        wanted[split.replace('validation', 'val')].append(encode_notes(read_midi(tune(n))))
    members['maestro-v3.0.0/2004/not_in_the_table.midi'] = tune(99)
    members['../outside.midi'] = tune(98)
    server.content = zip_of({'maestro-v3.0.0/maestro-v3.0.0.csv': table.getvalue(), **members})
    monkeypatch.setattr(prepare_data, 'MAESTRO', dict(url=server.url, size=len(server.content),
                                                      sha256=hashlib.sha256(server.content).hexdigest()))
    prepare_data.main(['maestro'])
    meta, splits = read_back('maestro')
    assert meta['modality'] == 'music' and meta['vocab_size'] == 388
    for split, pieces in wanted.items():
        assert len(splits[split]) == len(pieces) and all(np.array_equal(a, b) for a, b in zip(splits[split], pieces))
    assert [path.name for path in here.iterdir()] == ['data']


def test_youtubemix_is_split_as_sashimi_does(here, server, monkeypatch):
    members = {f'youtube_mix/out{n:03}.wav': sound(n % 7, seconds=0.01) for n in random.Random(0).sample(range(241), 241)}
    server.content = zip_of({**members, 'youtube_mix/../../evil.wav': sound(1), 'youtube_mix/readme.txt': b'no sound'})
    monkeypatch.setattr(prepare_data, 'YOUTUBEMIX', dict(url=server.url))
    prepare_data.main(['youtubemix'])
    meta, splits = read_back('youtubemix')
    assert meta['modality'] == 'audio' and meta['sample_rate'] == 16000 and meta['vocab_size'] == 256
    assert meta['sha256'] == hashlib.sha256(server.content).hexdigest()
    for split, numbers in dict(train=range(212), val=range(212, 226), test=range(226, 241)).items():
        expected = [mu_law_encode(prepare_data.read_wav(sound(n % 7, seconds=0.01))[0]) for n in numbers]
        assert len(splits[split]) == len(expected) and all(map(np.array_equal, splits[split], expected))
    assert [path.name for path in here.iterdir()] == ['data']


@pytest.mark.parametrize('content, named', [(b'<html>not found</html>', 'not a zip file'), ('bit', 'Bad CRC-32'), ('few', '4 of the 241')])
def test_a_damaged_or_incomplete_archive_says_to_delete_it(here, server, monkeypatch, content, named):
    whole = zip_of({f'youtube_mix/out{n:03}.wav': sound(n, 0.01) for n in range(4 if content == 'few' else 241)})
    server.content = whole if content == 'few' else whole[:100] + b'!' + whole[101:] if content == 'bit' else content
    monkeypatch.setattr(prepare_data, 'YOUTUBEMIX', dict(url=server.url))
    with pytest.raises(SystemExit, match=f'{named}.*delete it, and run this again'):
        prepare_data.main(['youtubemix'])
    assert not Path('data/youtubemix/meta.json').exists()


def test_an_archive_of_unknown_size_is_not_continued_and_arrives_whole_without_a_content_length(here, server, monkeypatch):
    server.content, server.lengths = random.Random(0).randbytes(1_000_000), False
    path = here / 'file.zip'
    (here / 'file.zip.part').write_bytes(b'something else')
    prepare_data.download(server.url, path)
    assert path.read_bytes() == server.content


def test_a_folder_is_split_by_the_hash_of_the_names_and_no_file_is_in_two_splits(here):
    for n in range(20):
        path = here / 'tunes' / 'ab'[n % 2] / f'{n}.{"mid" if n % 3 else "MIDI"}'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tune(n))
    (here / 'tunes/notes.txt').write_text('not music')
    prepare_data.main(['--midi', 'tunes', '--name=tunes'])
    _, splits = read_back('tunes')
    assert {split: len(pieces) for split, pieces in splits.items()} == dict(train=16, val=2, test=2)
    everything = sorted(piece.tobytes() for pieces in splits.values() for piece in pieces)
    assert everything == sorted(encode_notes(read_midi(tune(n))).tobytes() for n in range(20))
    first = Path('data/tunes/train.bin').read_bytes()
    prepare_data.main(['--midi', 'tunes', '--name=tunes'])
    assert Path('data/tunes/train.bin').read_bytes() == first


def test_a_broken_file_is_left_out_by_name_and_the_rest_goes_on(here, capsys):
    (here / 'tunes').mkdir()
    for n in range(6):
        (here / f'tunes/{n}.mid').write_bytes(tune(n))
    (here / 'tunes/cut.mid').write_bytes(tune(7)[:-20])
    (here / 'tunes/empty.mid').write_bytes(write_midi([]))
    prepare_data.main(['--midi', 'tunes', '--name=tunes'])
    out = capsys.readouterr().out
    assert "'cut.mid' is left out: this MIDI file is cut short" in out and "'empty.mid' is left out: it holds 0 tokens" in out
    assert {split: len(pieces) for split, pieces in read_back('tunes')[1].items()} == dict(train=4, val=1, test=1)


@pytest.mark.parametrize('option, suffix', [('--midi', '.mid'), ('--wav', '.wav')])
def test_a_folder_without_enough_files_is_refused(here, option, suffix):
    (here / 'few').mkdir()
    for n in range(2):
        (here / f'few/{n}{suffix}').write_bytes(b'whatever')
    with pytest.raises(SystemExit, match='few holds 0 readable files that end in .*it takes 3'):
        prepare_data.main([option, 'few', '--name=few'])
    assert not (here / 'data').exists()


@pytest.mark.parametrize('option, suffix, make', [('--midi', '.mid', tune), ('--wav', '.wav', sound)])
def test_mutated_files_cannot_stop_a_folder_from_being_read_or_write_outside_data(here, option, suffix, make):
    rng = random.Random(suffix)
    (here / 'in').mkdir()
    for n in range(100):
        data = bytearray(make(n % 5))
        for _ in range(rng.randrange(4)):
            data[rng.randrange(min(len(data), 60 if n % 2 else len(data)))] = rng.randrange(256)
        (here / f'in/{n:03}{suffix}').write_bytes(data[:rng.randrange(1, len(data))] if n % 10 == 0 else data)
    before = {path: path.read_bytes() for path in (here / 'in').iterdir()}
    prepare_data.main([option, 'in', '--name=wild'])
    meta, splits = read_back('wild')
    assert 20 < sum(map(len, splits.values())) < 100
    assert {path: path.read_bytes() for path in (here / 'in').iterdir()} == before
    assert sorted(path.name for path in here.iterdir()) == ['data', 'in']
    assert sorted(path.name for path in (here / 'data/wild').iterdir()) == ['meta.json', 'test.bin', 'train.bin', 'val.bin']


def test_other_sample_rates_become_16_khz(here):
    (here / 'in').mkdir()
    for n, rate in enumerate([8000, 16000, 44100]):
        (here / f'in/{n}.wav').write_bytes(sound(1, seconds=0.5, rate=rate))
    prepare_data.main(['--wav', 'in', '--name=in'])
    _, splits = read_back('in')
    pieces = [mu_law_decode(piece) for pieces in splits.values() for piece in pieces]
    assert [len(piece) for piece in pieces] == [8000] * 3
    for piece in pieces:  # each is the same 250 Hz at half amplitude, within the rounding of mu-law
        assert np.abs(piece[2000:6000] - 0.5 * np.sin(2 * np.pi * 250 * np.arange(2000, 6000) / 16000)).max() < 0.02


@pytest.fixture
def music_run(here):
    (here / 'tunes').mkdir()
    for n in range(5):
        (here / f'tunes/{n}.mid').write_bytes(tune(n))
    prepare_data.main(['--midi', 'tunes', '--name=tunes'])
    train.train(train.Settings(**SMALL, dataset='tunes'))
    return here


@pytest.fixture
def audio_run(here):
    (here / 'sounds').mkdir()
    for n in range(5):
        (here / f'sounds/{n}.wav').write_bytes(sound(n))
    prepare_data.main(['--wav', 'sounds', '--name=sounds'])
    train.train(train.Settings(**SMALL, dataset='sounds'))
    return here


def test_a_music_run_samples_a_midi_file_that_mido_reads_and_a_picture(music_run):
    mido = pytest.importorskip('mido')
    sample.main(sample.Settings(num_tokens=200))
    file = mido.MidiFile('out/tunes-on/sample.mid')
    assert any(message.type == 'note_on' for message in file.tracks[0])
    assert Path('out/tunes-on/sample.png').read_bytes().startswith(b'\x89PNG')


def test_music_of_more_than_a_day_is_refused_in_one_sentence_and_leaves_no_file(music_run, monkeypatch):
    monkeypatch.setattr(sample, 'decode_notes', lambda tokens: [(0.0, 90000.0, 60, 64)])
    with pytest.raises(SystemExit, match='^could not write long.mid and its picture: a note from 0.0 to 90000.0 s'):
        sample.main(sample.Settings(num_tokens=2, out='long.mid'))
    assert not Path('long.mid').exists()


def test_without_matplotlib_music_is_written_and_its_picture_is_one_sentence(music_run, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    with pytest.raises(SystemExit, match='^short.mid is written, and its picture is not: .*matplotlib.*: pip install -r requirements.txt$'):
        sample.main(sample.Settings(num_tokens=2, out='short.mid'))
    assert Path('short.mid').exists()


def test_a_midi_prompt_is_continued(music_run):
    Path('prompt.mid').write_bytes(tune(77, n=30))
    sample.main(sample.Settings(prompt='prompt.mid', num_tokens=50, out='longer.mid'))
    prompt = decode_notes(encode_notes(read_midi(tune(77, n=30))))
    notes = read_midi(Path('longer.mid').read_bytes())
    assert notes[:30] == prompt and len(notes) > 30
    assert Path('longer.png').exists()


def test_an_audio_run_samples_a_wav_file_that_python_reads_and_continues_a_prompt(audio_run):
    Path('prompt.wav').write_bytes(sound(3))
    sample.main(sample.Settings(prompt='prompt.wav', num_tokens=300, top_k=5))
    with wave.open('out/sounds-on/sample.wav') as file:
        assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (16000, 1, 1600 + 300)
        samples = np.frombuffer(file.readframes(1600), np.int16) / 32768
    assert np.abs(samples - prepare_data.read_wav(sound(3))[0]).max() < 0.03
    assert Path('out/sounds-on/sample.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize('changes, named', [(dict(prompt='nowhere.mid'), 'nowhere.mid'), (dict(prompt='tunes'), 'tunes'),
                                            (dict(out='song.mp3'), 'must end in .mid'), (dict(prompt='x.mid'), 'MThd')])
def test_a_prompt_or_a_name_that_is_no_music_is_refused_in_one_sentence(music_run, changes, named):
    Path('x.mid').write_bytes(b'RIFF and so on')
    with pytest.raises(SystemExit, match=named):
        sample.main(sample.Settings(**changes))


def test_each_modality_states_its_loss_in_the_unit_of_its_field():
    assert train.in_unit(np.log(2), 'text') == '1.000 bits per character'
    assert train.in_unit(np.log(4), 'audio') == '2.000 bits per sample'
    assert train.in_unit(2.5, 'music') == '2.500 nats per event'


def test_a_broken_connection_of_unknown_size_is_not_taken_for_the_end_of_the_file(here, server, monkeypatch):
    monkeypatch.setattr(prepare_data.time, 'sleep', lambda _: None)
    server.content, server.drop_after = bytes(5000), 1000
    with pytest.raises(SystemExit, match='could not get .* by hand and put it at'):
        prepare_data.download(server.url, here / 'file.zip')
    assert not (here / 'file.zip').exists()


def test_a_compressed_archive_with_a_damaged_byte_is_read_right_or_refused_in_one_sentence(here):
    whole, refused = io.BytesIO(), 0
    with zipfile.ZipFile(whole, 'w', zipfile.ZIP_DEFLATED) as file:
        file.writestr('a.wav', sound(1, 0.01))
    for at in range(len(whole.getvalue())):
        data = bytearray(whole.getvalue())
        data[at] ^= 0xFF
        Path('a.zip').write_bytes(data)
        try:
            with prepare_data.opened(Path('a.zip')) as file:
                assert file.read('a.wav') == sound(1, 0.01)
        except SystemExit as end:
            assert re.fullmatch(r'a.zip is damaged \(.*\): delete it, and run this again', end.code)
            refused += 1
    assert refused > len(whole.getvalue()) / 2


def test_the_place_of_a_file_follows_from_its_name_in_the_folder_alone(here):
    (here / 'in').mkdir()
    names = [f'{n:02}.mid' for n in range(17)]
    for n, name in enumerate(names):
        (here / 'in' / name).write_bytes(tune(n))
    prepare_data.main(['--midi', 'in', '--name=in'])
    _, splits = read_back('in')
    assert abs(len(splits['val']) - 1.7) <= 0.5 and abs(len(splits['test']) - 1.7) <= 0.5
    by_hash = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    found = [piece.tolist() for split in ('val', 'test', 'train') for piece in splits[split]]
    assert found == [encode_notes(read_midi(tune(int(name[:2])))).tolist() for name in by_hash]


def test_a_file_that_may_not_be_read_or_is_too_short_is_left_out_by_name(here, monkeypatch, capsys):
    (here / 'in').mkdir()
    for n in range(5):
        (here / f'in/{n}.wav').write_bytes(sound(n))
    (here / 'in/short.wav').write_bytes(write_wav([0.5], 16000))
    read = Path.read_bytes

    def forbidden(path):
        if path.name == '3.wav':
            raise PermissionError(13, 'Permission denied')
        return read(path)
    monkeypatch.setattr(Path, 'read_bytes', forbidden)
    prepare_data.main(['--wav', 'in', '--name=in'])
    out = capsys.readouterr().out
    assert "'3.wav' is left out: Permission denied" in out and "'short.wav' is left out: it holds 1 tokens" in out
    assert sum(map(len, read_back('in')[1].values())) == 4


@pytest.mark.parametrize('split, named', [('train', '1 files for training and 0 for validation'), ('val', '0 files for training and 1 for')])
def test_pieces_of_one_split_alone_are_refused_and_leave_nothing(here, split, named):
    with pytest.raises(SystemExit, match=named):
        prepare_data.write_pieces('one', [(split, np.array([60, 61]))], prepare_data.MUSIC)
    assert not Path('data').exists()


@pytest.mark.parametrize('rate', [None, 0, 10 ** 7, '16000', 16000.0])
def test_sound_without_a_sample_rate_that_can_be_played_is_refused(rate):
    meta = dict(prepare_data.AUDIO, splits=dict(train=9, val=9), checksums=dict(train='', val=''))
    prepare_data.check_meta(meta)
    with pytest.raises(ValueError, match='sample_rate'):
        prepare_data.check_meta(dict(meta, sample_rate=rate))
