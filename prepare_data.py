"""
Turn text, music, sound and labelled sequences into tokens on disk.

    python prepare_data.py               Python's own library, no download
    python prepare_data.py text8         Wikipedia in 27 characters (31 MB)
    python prepare_data.py maestro       1,276 piano performances (58 MB)
    python prepare_data.py youtubemix    four hours of piano, as sound
    python prepare_data.py listops       nested lists to evaluate, made here
    python prepare_data.py imdb          50,000 film reviews, good or bad (84 MB)
    python prepare_data.py cifar10       60,000 grey pictures in ten classes (170 MB)
    python prepare_data.py --input a.txt b.txt --name mine
    python prepare_data.py --midi folder --name tunes
    python prepare_data.py --wav folder --name sounds

A data set is data/<name>/train.bin, val.bin and mostly test.bin: nothing but tokens, uint8 where
vocab_size <= 256, else uint16. meta.json says what they mean. Text, music and sound are one flat
stream (N,): files stand end to end, and a sequence that training draws may cross an end. Labelled
data are rows (rows, W): a sequence, its label, then padding where a causal model cannot look. The
labels are the last ids of the vocabulary.
"""

import argparse
import csv
import hashlib
import json
import os
import random
import re
import statistics
import struct
import sys
import sysconfig
import tarfile
import urllib.request
import warnings
import zipfile
from collections import defaultdict, deque
from pathlib import Path

import numpy as np

DATASETS = ['stdlib', 'text8', 'maestro', 'youtubemix', 'listops', 'imdb', 'cifar10']

# archives; nobody publishes the checksum of youtubemix
TEXT8 = dict(url='http://mattmahoney.net/dc/text8.zip',
             sha256='a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232')
MAESTRO = dict(url='https://storage.googleapis.com/magentadata/datasets/maestro/v3.0.0/'
                   'maestro-v3.0.0-midi.zip',
               sha256='70470ee253295c8d2c71e6d9d4a815189e35c89624b76d22fce5a019d5dde12c')
YOUTUBEMIX = dict(url='https://huggingface.co/datasets/krandiash/youtubemix/resolve/main/'
                      'youtube_mix.zip')
IMDB = dict(url='https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz',
            sha256='c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe')
CIFAR10 = dict(url='https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz',
               sha256='c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd')

MUSIC = dict(modality='music', vocab_size=388)
AUDIO = dict(modality='audio', vocab_size=256, sample_rate=16000,
             encoding='8-bit mu-law; amplitudes as they are, not scaled by file')
TEXT8_CHARACTERS = ' abcdefghijklmnopqrstuvwxyz'

# ---- files: what is half-written is never taken for the whole ----
def progress(words):
    """Show words on a terminal, where the next line will replace them."""
    if sys.stdout.isatty():
        print(words, end=' \r', flush=True)

def checksum(data):
    return hashlib.sha256(data).hexdigest()

def write_aside(path, data):
    """Write bytes to path.part, then rename it: path is never seen half-written."""
    path, aside = Path(path), Path(f'{path}.part')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(data)
        os.replace(aside, path)
    except OSError as error:
        raise SystemExit(f'could not write {path}: {error.strerror}')
    finally:
        if os.path.exists(aside):  # after an error or Ctrl-C
            os.remove(aside)

def write_dataset(name, splits, meta):
    """Write data/<name>/. splits: {'train': token ids (N,), ...}, of labelled data (rows, W).
    meta.json comes last and has the checksums: a mixture of old and new files is refused."""
    meta = dict(format=2, **meta, splits={}, checksums={})
    last = min(meta['vocab_size'], 65536) - 1
    for split, tokens in splits.items():
        if np.size(tokens) and not 0 <= np.min(tokens) <= np.max(tokens) <= last:
            raise ValueError(f'{split}: token ids must be 0 to {last}, as vocab_size says')
        if np.ndim(tokens) == 2:
            meta['width'] = np.shape(tokens)[1]
        tokens = np.ascontiguousarray(tokens, np.uint8 if meta['vocab_size'] <= 256 else np.uint16)
        write_aside(f'data/{name}/{split}.bin', tokens)
        meta['splits'][split] = len(tokens)
        meta['checksums'][split] = checksum(tokens)
    write_aside(f'data/{name}/meta.json', json.dumps(meta, indent=1).encode())
    counts = ', '.join(f'{split} {count:,}' for split, count in meta['splits'].items())
    print(f'data/{name}: {counts} {"rows" if "width" in meta else "tokens"}')

def make_with(name):
    """The advice to make data/<name>, with the command."""
    dataset = re.sub(r'^(listops|imdb)-(\d+)$', r'\1 --max_length=\2', name)
    if name not in DATASETS and dataset == name:
        dataset = f'--input FILE (or --midi FOLDER, --wav FOLDER) --name {name}'
    return f'make the data with: python prepare_data.py {dataset}'

def read_meta(name):
    """data/<name>/meta.json as a dict; SystemExit where it is not of format 2."""
    path = Path('data') / name / 'meta.json'
    try:
        meta = json.loads(path.read_bytes())
        if meta['format'] == 2:
            return meta
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise SystemExit(f'{path} is missing or not of format 2: {make_with(name)}')

def read_tokens(name, split, meta):
    """data/<name>/<split>.bin, memory-mapped: uint8 or uint16 (N,), of labelled data (rows, W)."""
    path = Path('data') / name / f'{split}.bin'
    try:
        tokens = np.memmap(path, np.uint8 if meta['vocab_size'] <= 256 else np.uint16, mode='r')
        if checksum(tokens) != meta['checksums'][split]:
            raise ValueError('its checksum is not the one in meta.json')
    except (OSError, ValueError) as error:
        raise SystemExit(f'could not read {path} ({error}): {make_with(name)}')
    return tokens.reshape(-1, meta['width']) if 'width' in meta else tokens

def download(name, url, sha256=None):
    """Fetch url to data/<name>/, unless the right file is there; its path."""
    path = Path('data') / name / url.split('/')[-1]
    try:
        if path.exists() and sha256 in (None, checksum(path.read_bytes())):
            return path
        with urllib.request.urlopen(url, timeout=60) as response:
            data, total = bytearray(), int(response.headers.get('Content-Length', 0))
            while block := response.read(1 << 20):
                data += block
                progress(f'{path}: {len(data) / 1e6:.0f} of {total / 1e6:.0f} MB')
        if len(data) < total or sha256 not in (None, checksum(data)):
            raise OSError('what came is not the right file')
    except Exception as error:  # the network fails in many ways
        raise SystemExit(f'could not get {path} ({error}): '
                         f'download {url} by hand, put it there and run this again')
    write_aside(path, data)
    return path

# ---- text: a token is a character ----
def encode_text(text, characters):
    """The index in the string characters of every character of text: int32 (N,)."""
    unknown = [f'{c!r} (U+{ord(c):04X})' for c in sorted(set(text) - set(characters))]
    if unknown:
        raise ValueError(f'not among the characters of these data: {", ".join(unknown[:10])}')
    index = {c: token for token, c in enumerate(characters)}
    return np.fromiter((index[c] for c in text), np.int32, len(text))

def decode_text(tokens, characters):
    return ''.join(characters[token] for token in tokens)

def write_text(name, splits, source, characters=None):
    """Write the texts {'train': str, ...} in the characters given, or all that they have."""
    characters = characters or ''.join(sorted(set(''.join(splits.values()))))
    splits = {split: encode_text(text, characters) for split, text in splits.items()}
    write_dataset(name, splits, dict(modality='text', vocab_size=len(characters),
                                     characters=characters, source=source))

def split_90_5_5(text):
    """Training, validation and test in the order of the text, as text8 is split."""
    a, b = len(text) * 90 // 100, len(text) * 95 // 100
    return dict(train=text[:a], val=text[a:b], test=text[b:])

def prepare_stdlib():
    """The Python standard library: on every machine, no download."""
    root = Path(sysconfig.get_path('stdlib'))
    left_out = {'test', 'tests', 'idle_test', 'site-packages', 'dist-packages', '__pycache__'}
    files = [file for file in root.rglob('*.py')
             if file.is_file() and not left_out & set(file.relative_to(root).parts)]

    # in the order of the hashes of their names: val is not one corner of the library
    files.sort(key=lambda file: checksum(file.relative_to(root).as_posix().encode()))
    texts = [file.read_text(encoding='utf-8', errors='replace') for file in files]
    n = len(texts) * 9 // 10  # whole files: none is on both sides
    write_text('stdlib', dict(train=''.join(texts[:n]), val=''.join(texts[n:])),
               f'the standard library of Python {sys.version.split()[0]}, {len(texts)} files')

def prepare_text8():
    """The first 100 million characters of a cleaned English Wikipedia."""
    with zipfile.ZipFile(download('text8', **TEXT8)) as file:
        text = file.read('text8').decode('ascii')
    write_text('text8', split_90_5_5(text), TEXT8['url'], TEXT8_CHARACTERS)

def prepare_input(files, name, alphabet):
    """The user's UTF-8 text files, one behind the other; line ends stay what they are."""
    text, characters = '', None
    for file in files:
        try:
            data = Path(file).read_bytes()
            # UTF-16 has zeros, at least at each blank, and a zero is valid UTF-8
            if data[:2] in (b'\xff\xfe', b'\xfe\xff') or data.count(0) > len(data) / 50:
                raise SystemExit(f'{file} is UTF-16 or no text: save it as UTF-8')
            text += data.decode('utf-8-sig')  # drops a byte order mark
        except (OSError, UnicodeDecodeError) as error:
            raise SystemExit(f'could not read {file} as UTF-8 text ({error})')

    if alphabet == 'text8':  # by Matt Mahoney's rules: a-z, single spaces, digits spelled out
        text, characters = text.lower(), TEXT8_CHARACTERS
        for digit, word in enumerate('zero one two three four five six seven eight nine'.split()):
            text = text.replace(str(digit), f' {word} ')
        text = re.sub('[^a-z]+', ' ', text)
    if len(text) < 1000:
        raise SystemExit(f'{len(text)} characters are too few to train on: give at least 1,000')
    write_text(name, split_90_5_5(text), ', '.join(Path(f).name for f in files), characters)

# ---- music: a MIDI file to notes, notes to events ----
def variable_length(data, at):
    """The number at data[at], seven bits a byte, and the index behind it."""
    number = 0
    for at in range(at, at + 4):
        number = number << 7 | data[at] & 0x7F
        if data[at] < 0x80:
            return number, at + 1
    raise ValueError('a number of more than 4 bytes')

def track_events(data, at):
    """Yield every event of the MIDI track at data[at]: (index behind it, tick, status, byte, byte).
    A tempo has status 0xFF and microseconds a quarter note for its first byte; what is of no use
    has status 0. IndexError or ValueError: the track is damaged, or cut short.
    """
    tick, status, kind = 0, 0, None
    # a track ends at its end-of-track event (kind 0x2F) or, without one, where the next begins
    while kind != 0x2F and at < len(data) and data[at:at + 4] != b'MTrk':
        wait, at = variable_length(data, at)
        tick += wait
        first, event = data[at], (0, 0, 0)
        if first in (0xF0, 0xF7, 0xFF):  # system exclusive or meta: with a length
            kind = data[at + 1] if first == 0xFF else None
            length, start = variable_length(data, at + 1 + (first == 0xFF))
            at = start + length
            if kind == 0x51 and length == 3:
                event = (0xFF, int.from_bytes(data[start:at], 'big'), 0)
        elif first >= 0xF8:  # real time: a single byte
            at += 1
        else:
            if first >= 0x80:  # else running status: the last one goes on, even over meta events
                status = first
                at += 1
            size = 1 if 0xC0 <= status < 0xE0 else 2
            event = (status, data[at], data[at + size - 1])
            at += size
            if not 0x80 <= status < 0xF0 or max(event[1:]) > 127:
                raise ValueError('not a MIDI message')
        if at > len(data) or b'MTrk' in data[at - 3:at + 3]:
            raise IndexError  # the event reaches beyond the file, or into the next track's mark
        yield at, tick, *event
    if kind != 0x2F and at >= len(data):
        raise IndexError  # the file ends before the track does

def sounding_notes(events, division):
    """Notes in seconds of events (tick, status, byte, byte); division: ticks a quarter note."""
    # clock / rate is in seconds: in whole numbers (ticks times microseconds) it does not drift
    rate, tempo = division * 1_000_000, 500_000
    if division >= 0x8000:  # SMPTE: frames a second, 29 means 29.97, and ticks a frame
        frames = 256 - (division >> 8)
        rate, tempo = (division & 0xFF) * (30000 / 1001 if frames == 29 else frames), 1
    if rate == 0:
        raise ValueError('it does not say how long a tick is')
    notes, clock, last_tick = [], 0, 0
    pressed = defaultdict(deque)  # (channel, pitch) -> notes whose key is down
    ringing = defaultdict(list)   # channel -> notes whose key is up, held by the pedal
    struck = defaultdict(list)    # (channel, pitch) -> notes that the next onset ends
    pedal = defaultdict(bool)     # channel -> is it down?
    for tick, status, pitch, value in events:
        clock, last_tick = clock + (tick - last_tick) * tempo, tick
        kind, channel, key = status >> 4, status & 15, (status & 15, pitch)
        ended = []
        if status == 0xFF and division < 0x8000:
            tempo = pitch or tempo  # here no pitch; 0 is no tempo
        elif kind == 0xB and pitch == 64:  # sustain pedal
            pedal[channel] = value >= 64
            if not pedal[channel]:
                ended = ringing.pop(channel, [])
        elif kind == 0x9 and value and channel != 9:  # channel 10, from 1, is percussion
            if pedal[channel]:
                ended = struck.pop(key, [])
            notes.append([clock, np.inf, pitch, value])
            pressed[key].append(notes[-1])
            struck[key].append(notes[-1])
        elif kind in (0x8, 0x9) and pressed[key]:  # velocity 0 is a note_off, too
            note = pressed[key].popleft()
            (ringing[channel] if pedal[channel] else ended).append(note)
        for note in ended:
            note[1] = min(note[1], clock)  # the first end counts

    if clock > 24 * 3600 * rate:
        raise ValueError('it lasts more than 24 hours, which is taken for damage')
    notes.sort(key=lambda note: (note[0], note[2]))
    return [(start / rate, min(end, clock) / rate, pitch, velocity)
            for start, end, pitch, velocity in notes if start < min(end, clock)]

def read_midi(data):
    """Notes of a MIDI file (bytes): [(start, end, pitch, velocity)], seconds, by (start, pitch).
    A note_off ends the oldest note_on of its channel and pitch. While the pedal is down (controller
    64 at 64 or more) a note sounds until pedal-up or the next onset of its pitch. What never ends,
    ends with the piece. Percussion and notes of no length are left out. What stands before a damage
    in a track counts, with a warning. ValueError: it is no MIDI file. Source: Standard MIDI Files.
    """
    header = data.find(b'MThd')
    if header < 0:
        raise ValueError('it is no MIDI file')
    division = int.from_bytes(data[header + 12:header + 14], 'big')

    # every track, from where the one before ended; their number and lengths are not needed
    events, n, at = [], 0, data.find(b'MTrk', header)
    while at >= 0:
        n, at = n + 1, at + 8
        try:
            for at, *event in track_events(data, at):
                events.append(event)
        except (IndexError, ValueError):
            warnings.warn(f'its track {n} is damaged or cut short; what stands before counts')
        at = data.find(b'MTrk', at)
    events.sort(key=lambda event: event[0])  # stable: within a tick, the order of the file
    return sounding_notes(events, division)

def encode_notes(notes):
    """Notes [(start, end, pitch, velocity)] in seconds -> event ids, uint16 (T,).
    The 388 events of Performance RNN and Music Transformer: 0..127 note_on of a pitch, 128..255
    note_off, 256..355 time goes on by 1..100 steps of 10 ms, 356..387 velocity bin, where it
    changes. Times are rounded to steps, and a note lasts at least one.
    """
    events = []  # (step, token, velocity bin)
    for start, end, pitch, velocity in sorted(notes, key=lambda note: (note[0], note[2])):
        first = int(100 * start + 0.5)
        last = max(first + 1, int(100 * end + 0.5))
        events += [(first, pitch, 356 + (velocity - 1) // 4), (last, 128 + pitch, None)]
    # stable: within a step, note_offs are first, as their notes began before
    events.sort(key=lambda event: event[0])
    tokens, now, last_velocity = [], 0, None
    for step, token, velocity in events:
        while now < step:
            shift = min(step - now, 100)
            tokens.append(255 + shift)
            now += shift
        if velocity not in (None, last_velocity):
            tokens.append(velocity)
            last_velocity = velocity
        tokens.append(token)
    return np.array(tokens, np.uint16)  # (T,)

def music_tokens(data):
    return encode_notes(read_midi(data))

# ---- sound: a WAV file to samples, samples to 256 levels ----
def read_wav(data):
    """Read the bytes of a WAV file: (samples float32 (N,) in [-1, 1], rate in Hz).

    PCM of 8 to 32 bits, or floating point, where NaN is silence. Channels are averaged. What is
    there counts, whatever size a header says. ValueError: it is something else.
    Source: Multimedia Programming Interface and Data Specifications 1.0 (IBM, Microsoft, 1991).
    """
    # chunks: name, size, content, and a byte of padding if the size is odd
    at, name, header = 12, b'', b''
    while name != b'data' and at + 8 <= len(data):
        name, size = struct.unpack_from('<4sI', data, at)
        at += 8
        if name == b'fmt ':
            header = data[at:at + size]
        if name != b'data':
            at += size + size % 2
    if data[8:12] != b'WAVE' or name != b'data' or len(header) < 16:
        raise ValueError('it is no WAV file, or its sound or the description of it is missing')
    if len(data) < at + size <= 8 + int.from_bytes(data[4:8], 'little'):  # else a placeholder
        warnings.warn('it is cut short; what is there counts')
    size = size or len(data)  # 0: the recorder never came back to fill it in

    kind, channels, rate, _, _, bits = struct.unpack_from('<HHIIHH', header)
    if kind == 0xFFFE and len(header) >= 26:  # extensible header: the kind starts a longer code
        kind, = struct.unpack_from('<H', header, 24)
    if (not (kind == 1 and 8 <= bits <= 32 or kind == 3 and bits in (32, 64))
            or channels == 0 or not 100 <= rate <= 1_000_000):
        raise ValueError(f'it has {channels} channels, {rate} Hz, {bits} bits of kind {kind}; PCM '
                         'of 8 to 32 bits is read: ffmpeg -i old.wav -c:a pcm_s16le new.wav')

    width = (bits + 7) // 8  # bytes a sample
    n_frames = min(size, len(data) - at) // (channels * width)
    raw = np.frombuffer(data, np.uint8, n_frames * channels * width, at)
    if kind == 3:
        samples = np.nan_to_num(raw.view(f'<f{width}')).clip(-1, 1).astype(np.float32)
    else:
        # every width becomes a 32-bit integer whose low bytes are 0: one scale for all
        padded = np.zeros((n_frames * channels, 4), np.uint8)
        padded[:, 4 - width:] = raw.reshape(-1, width)
        padded[:, 3] ^= 128 * (width == 1)  # 8-bit samples are unsigned, 128 is silence
        samples = padded.view('<i4').astype(np.float32) / 2 ** 31
    return samples.reshape(n_frames, channels).mean(axis=1), rate  # (N,)

def resample(samples, rate, new_rate):
    """Samples (N,) at another rate (Hz): float32 (round(N * new_rate / rate),). Band-limited:
    frequencies below 99% of half the lower rate stay, higher ones go."""
    if rate == new_rate:
        return samples
    # an FFT is circular: a silent second keeps the end off the start; whole ones fit both rates
    seconds = len(samples) // rate + 2
    spectrum = np.fft.rfft(samples, seconds * rate)
    spectrum = spectrum[:int(0.99 * seconds * min(rate, new_rate) / 2)]  # 1 / seconds Hz apart
    out = np.fft.irfft(spectrum, seconds * new_rate) * (new_rate / rate)
    return out[:round(len(samples) * new_rate / rate)].astype(np.float32)

def mu_law_encode(samples):
    """Samples, clipped to [-1, 1], as 8-bit mu-law levels: uint8 of the same shape.

    sign(a) log(1 + 255 |a|) / log 256 has fine steps for quiet sound. It goes to the nearest of
    level / 128 - 1: off by at most 1/256, and at the top, since 256 is no level, by 1/128.
    """
    samples = np.clip(np.asarray(samples, np.float32), -1, 1)
    companded = np.sign(samples) * np.log1p(255 * np.abs(samples)) / np.log(256)
    return np.minimum(np.round(128 * (companded + 1)), 255).astype(np.uint8)

def audio_tokens(data):
    samples, rate = read_wav(data)
    return mu_law_encode(resample(samples, rate, AUDIO['sample_rate']))

# ---- many files of music or sound, end to end ----
def prepare_maestro():
    """Piano performances with their pedal, split by their own table (CC BY-NC-SA 4.0)."""
    pieces = dict(train=[], validation=[], test=[])
    with zipfile.ZipFile(download('maestro', **MAESTRO)) as file:
        table = file.read('maestro-v3.0.0/maestro-v3.0.0.csv').decode().splitlines()
        for n, row in enumerate(csv.DictReader(table), 1):
            data = file.read('maestro-v3.0.0/' + row['midi_filename'])
            pieces[row['split']].append(music_tokens(data))
            progress(f'{n} performances')
    train, val, test = map(np.concatenate, pieces.values())
    write_dataset('maestro', dict(train=train, val=val, test=test), dict(MUSIC, **MAESTRO))

def prepare_youtubemix():
    """241 minutes of piano, split by file as in SaShiMi (Goel et al., arXiv 2202.09729)."""
    archive = download('youtubemix', **YOUTUBEMIX)
    try:
        with zipfile.ZipFile(archive) as file:
            pieces = [audio_tokens(file.read(f'youtube_mix/out{n:03}.wav')) for n in range(241)]
    except Exception as error:  # without a checksum, anything can be in it
        raise SystemExit(f'{archive} cannot be read ({error}): delete it and run this again')
    train, val, test = map(np.concatenate, (pieces[:212], pieces[212:226], pieces[226:]))
    write_dataset('youtubemix', dict(train=train, val=val, test=test),
                  dict(AUDIO, **YOUTUBEMIX, sha256=checksum(archive.read_bytes())))

def prepare_folder(folder, name, suffixes, encode, meta):
    """Write the files of a folder and its subfolders, turned into tokens by encode(bytes).
    Every problem is a line with the file's name. Equal tokens count once. In the order of their
    hashes, a tenth is for validation, a tenth for test, and the rest for training.
    """
    files, seen, errors = [], set(), []
    for place, folders, names in os.walk(folder, followlinks=True, onerror=errors.append):
        if os.path.realpath(place) in seen:  # a link led here before
            folders.clear()
            continue
        seen.add(os.path.realpath(place))
        files += [os.path.join(place, file) for file in names if file.lower().endswith(suffixes)]
    for error in errors:
        print(f'{error.filename} is left out: {error.strerror}')
    pieces, equal, left_out = {}, 0, len(errors)  # pieces: hash -> (file, tokens)
    for n, file in enumerate(sorted(files), 1):
        progress(f'{n} of {len(files)} files')
        try:
            with warnings.catch_warnings(record=True) as damages:
                warnings.simplefilter('always')
                tokens = encode(Path(file).read_bytes())
            for damage in damages:
                print(f'{file}: {damage.message}')
            if len(tokens) < 2:
                raise ValueError(f'it makes {len(tokens)} tokens')
        except (OSError, ValueError) as error:
            print(f'{file} is left out: {getattr(error, "strerror", error)}')
            left_out += 1
            continue
        first, _ = pieces.setdefault(checksum(tokens), (file, tokens))
        if first != file:
            print(f'{file} equals {first} and is not counted again')
            equal += 1
    print(f'{folder}: {len(pieces)} files read, {left_out} left out, {equal} equal to another')

    if len(pieces) < 3:
        raise SystemExit('that is too few: training, validation and test take a file each')
    tokens = [pieces[key][1] for key in sorted(pieces)]
    n = max(1, round(len(tokens) / 10))
    val, test, train = map(np.concatenate, (tokens[:n], tokens[n:2 * n], tokens[2 * n:]))
    write_dataset(name, dict(train=train, val=val, test=test),
                  dict(meta, source=f'{len(tokens)} files of {Path(folder).resolve().name}'))

# ---- Long Range Arena (Tay et al., arXiv 2011.04006): rows of a sequence and its label ----
OPERATORS = {'[MIN': min, '[MAX': max, '[MED': lambda digits: int(statistics.median(digits)),
             '[SM': lambda digits: sum(digits) % 10}
SYMBOLS = [*OPERATORS, ']', *'0123456789']  # the index is the token: ] is 4, and 0 is 5

def write_rows(name, splits, meta):
    """Write the examples [(T,), ...] of every split, each a sequence with its label last."""
    width = max(len(example) for examples in splits.values() for example in examples)
    rows = {}
    for split, examples in splits.items():
        rows[split] = np.zeros((len(examples), width), np.uint16)
        for row, example in zip(rows[split], examples):
            row[:len(example)] = example
    write_dataset(name, rows, meta)

def listops_answer(tokens):
    """The value 0..9 of a list in SYMBOLS ids; ValueError where it is not one whole list."""
    stack = [[]]  # the operator and the digits of every open list, below them the answer
    for token in tokens:
        symbol = SYMBOLS[token]
        if symbol in OPERATORS:
            stack.append([OPERATORS[symbol]])
        elif symbol != ']':
            stack[-1].append(int(symbol))
        elif len(stack) > 1 and len(stack[-1]) > 1:
            operator, *digits = stack.pop()
            stack[-1].append(operator(digits))
        else:
            raise ValueError('a ] closes nothing, or a list without a digit')
    if len(stack) > 1 or len(stack[0]) != 1:
        raise ValueError('it is not one whole list')
    return stack[0][0]

def add_random_list(tokens, rng, longest, depth=1):
    """Append a random list or digit to tokens, by the rules of Nangia and Bowman, arXiv 1804.06028.

    An operator with probability 1/4, else a digit; at depth 10 always a digit. Operators, digits
    and 2..10 arguments are equally likely. Beyond longest, where the list is of no use, it ends.
    """
    if depth == 10 or len(tokens) > longest or rng.random() >= 0.25:
        tokens.append(5 + int(10 * rng.random()))  # unlike randrange the same in every Python
        return
    tokens.append(int(4 * rng.random()))
    for _ in range(2 + int(9 * rng.random())):
        add_random_list(tokens, rng, longest, depth + 1)
    tokens.append(4)

def prepare_listops(max_length=2000, examples=96_000, held_out=2000, seed=1337):
    """Nested lists with max_length / 4 < length < max_length; no two are equal."""
    rng, found, total = random.Random(seed), {}, examples + 2 * held_out
    while len(found) < total:
        tokens = []
        add_random_list(tokens, rng, max_length)
        if max_length // 4 < len(tokens) < max_length:
            label = len(SYMBOLS) + listops_answer(tokens)
            found[bytes([*tokens, label])] = True  # a dict has an order, a set has none
            progress(f'{len(found):,} of {total:,} lists')
    # the short ones, of which there are few, are found early: shuffled, every split has them
    rows = [np.frombuffer(row, np.uint8) for row in found]
    rng.shuffle(rows)
    test, val, train = rows[:held_out], rows[held_out:2 * held_out], rows[2 * held_out:]
    splits = dict(train=train, val=val, test=test)
    write_rows('listops' if max_length == 2000 else f'listops-{max_length}', splits, dict(
        modality='listops', vocab_size=25, labels=list('0123456789'), source=f'seed {seed}'))

def prepare_imdb(max_length=4096):
    """Film reviews cut to max_length bytes, bad or good; val is a tenth of the official train."""
    reviews = dict(train=[], test=[])
    with tarfile.open(download('imdb', **IMDB)) as file:  # in memory: no name leads anywhere
        for member in file:
            found = re.fullmatch(r'aclImdb/(train|test)/(neg|pos)/\d+_\d+\.txt', member.name)
            if found and member.isfile():
                content = file.extractfile(member).read()[:max_length]
                tokens = np.array([*content, 256 + (found[2] == 'pos')], np.uint16)
                reviews[found[1]].append(tokens)
    train, test = reviews.values()
    random.Random(1337).shuffle(train)  # bad and good ones stand apart
    random.Random(1337).shuffle(test)
    n = len(train) // 10
    splits = dict(train=train[n:], val=train[:n], test=test)
    write_rows('imdb' if max_length == 4096 else f'imdb-{max_length}', splits,
               dict(modality='bytes', vocab_size=258, labels=['neg', 'pos'], **IMDB))

def prepare_cifar10():
    """Pictures of 32 x 32 pixels, row by row, in ten classes. The official test split; the last
    tenth of the others is for validation. Grey: 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601)."""
    batches = {}
    with tarfile.open(download('cifar10', **CIFAR10)) as file:
        for member in file:
            if member.isfile() and member.name.endswith('.bin'):
                # a record: label, 1,024 bytes of red, of green, of blue
                records = np.frombuffer(file.extractfile(member).read(), np.uint8).reshape(-1, 3073)
                planes = records[:, 1:].reshape(-1, 3, 1024).swapaxes(1, 2)  # (10000, 1024, 3)
                grey = (planes @ np.array([299, 587, 114]) + 500) // 1000    # (10000, 1024)
                labels = 256 + records[:, :1].astype(int)                    # (10000, 1)
                batches[member.name] = np.hstack((grey, labels)).astype(np.uint16)
    rows = np.concatenate([batches[name] for name in sorted(batches)])  # test_batch is last
    n = len(rows) // 6
    train, val, test = np.split(rows, [-3 * n // 2, -n])
    classes = 'airplane automobile bird cat deer dog frog horse ship truck'
    write_dataset('cifar10', dict(train=train, val=val, test=test), dict(
        modality='pixels', vocab_size=266, labels=classes.split(), **CIFAR10))

# ---- the command line ----
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument('dataset', nargs='?', default='stdlib', choices=DATASETS)
    what.add_argument('--input', nargs='+', metavar='FILE', help='your own UTF-8 text, in order')
    what.add_argument('--midi', metavar='FOLDER', help='your own .mid and .midi files')
    what.add_argument('--wav', metavar='FOLDER', help='your own .wav files')
    parser.add_argument('--name', help='your data go to data/NAME')
    parser.add_argument('--alphabet', choices=['all', 'text8'], help='text8: a-z and spaces')
    parser.add_argument('--max_length', type=int, help='listops (2000), imdb (4096 bytes)')
    parser.add_argument('--examples', type=int, default=96_000, help='listops: lists to train on')
    args = parser.parse_args(argv)

    if bool(args.input or args.midi or args.wav) != bool(args.name):
        parser.error('--name goes with --input, --midi or --wav, and they need it')
    if args.name and (args.name in DATASETS or not re.fullmatch(r'\w[\w.-]*', args.name)):
        parser.error('--name takes letters, digits, _ - . and not the name of another data set')
    if args.max_length not in (None, *range(16, 8001)) or args.examples < 1:
        parser.error('--max_length must be 16 to 8000, --examples 1 or more')

    if args.input:
        prepare_input(args.input, args.name, args.alphabet)
    elif args.midi:
        prepare_folder(args.midi, args.name, ('.mid', '.midi'), music_tokens, MUSIC)
    elif args.wav:
        prepare_folder(args.wav, args.name, ('.wav',), audio_tokens, AUDIO)
    elif args.dataset == 'listops':
        prepare_listops(args.max_length or 2000, args.examples)
    elif args.dataset == 'imdb':
        prepare_imdb(args.max_length or 4096)
    else:
        dict(stdlib=prepare_stdlib, text8=prepare_text8, maestro=prepare_maestro,
             youtubemix=prepare_youtubemix, cifar10=prepare_cifar10)[args.dataset]()

if __name__ == '__main__':
    if hasattr(sys.stdout, 'reconfigure'):
        sys.stdout.reconfigure(errors='backslashreplace')  # a name that the console cannot show
    try:
        main()
        sys.stdout.flush()
    except (KeyboardInterrupt, BrokenPipeError, MemoryError) as stop:  # or | head has read enough
        sys.stdout = open(os.devnull, 'w')
        raise SystemExit(f'stopped ({type(stop).__name__}); what was not finished is not written')
