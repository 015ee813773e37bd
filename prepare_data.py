"""
Turn text, music, sound or labelled sequences into tokens on disk: data/<name>/{train,val[,test]}.bin and meta.json.

    python prepare_data.py                                the Python standard library's own source; no download
    python prepare_data.py text8                          100 MB of Wikipedia in 27 characters (31 MB to download)
    python prepare_data.py maestro                        1,276 piano performances, as events (58 MB)
    python prepare_data.py youtubemix                     four hours of piano, as sound
    python prepare_data.py listops --max_length=128       nested lists to evaluate, made here; 2000: Long Range Arena's
    python prepare_data.py imdb                           50,000 film reviews as bytes, good or bad (84 MB)
    python prepare_data.py cifar10                        60,000 grey pictures as 1,024 pixels, ten classes (170 MB)
    python prepare_data.py --input a.txt b.txt --name ab  your own UTF-8 text
    python prepare_data.py --midi folder --name tunes     your own .mid files
    python prepare_data.py --wav folder --name sounds     your own .wav files

A .bin is nothing but the tokens: uint8 where vocab_size <= 256, else uint16. meta.json says what they mean.
"""

import argparse
import contextlib
import csv
import difflib
import hashlib
import http.client
import inspect
import io
import json
import math
import multiprocessing
import os
import random
import re
import signal
import statistics
import struct
import sys
import sysconfig
import tarfile
import time
import urllib.request
import zipfile
import zlib
from collections import defaultdict, deque
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np


@dataclass
class Settings:
    dataset: str = ''  # what to prepare: one of the names above, or stdlib, which is prepared if nothing is asked for
    input: list = None  # your own UTF-8 text file, or several in the order they are to be read
    midi: str = ''  # a folder with your own MIDI files (.mid, .midi)
    wav: str = ''  # a folder with your own WAV files (.wav)
    name: str = ''  # what your own data are to be called: the tokens go to data/<name>/
    alphabet: str = 'all'  # with --input; all: every character of the text; text8: a-z and space, digits spelled out
    max_length: int = None  # with listops: lists shorter than this (2000); with imdb: the bytes kept of a review (4096)
    examples: int = None  # with listops: lists to train on (96000); 2,000 others each are for validation and test
    seed: int = None  # with listops: another seed, other lists (1337)

    def problems(self):
        """Every contradiction in the settings, one sentence each."""
        asked = [option for option in ('dataset', 'input', 'midi', 'wav') if getattr(self, option)]
        if len(asked) > 1:
            yield f'{" and ".join(asked)} are given, and one run prepares one data set: choose one'
        if self.dataset not in ('', *DATASETS):  # which stand at the end of this file
            yield f'{self.dataset!r} is not a data set I know: {", ".join(DATASETS)}{near_miss(self.dataset, DATASETS)}'
        if self.alphabet not in ('all', 'text8'):
            yield f'--alphabet={self.alphabet} is not one of all, text8'
        elif self.alphabet != 'all' and not self.input:
            yield '--alphabet goes with --input FILE'
        for option, least, most, places in (('max_length', 16, 8000, ('listops', 'imdb')),
                                            ('examples', 1, 10 ** 6, ('listops',)), ('seed', 0, 10 ** 9, ('listops',))):
            value = getattr(self, option)
            if value is not None and self.dataset not in places:
                yield f'--{option} goes with {" or ".join(places)}'
            elif value is not None and not least <= value <= most:
                yield f'--{option}={value} must be between {least} and {most}'
        if (self.input or self.midi or self.wav) and not self.name:
            yield f'--{asked[-1]} needs --name: what shall the data set be called?'
        if self.name and not (self.input or self.midi or self.wav):
            yield '--name goes with --input, --midi or --wav'
        if self.name.lower() in DATASETS or re.fullmatch(r'(listops|imdb)-\d+', self.name.lower()):  # of another max_length
            yield f'--name={self.name} is taken by the data set of that name: choose another'
        if self.name and not (re.fullmatch(FOLDER_NAME, self.name) and len(self.name) <= 40):  # <name>-learnable-2 is a run
            yield f'--name={self.name} becomes the name of a folder: use at most 40 letters, digits, _, - and .'
        for file in self.input or ():
            if not os.path.isfile(file):
                yield f'--input: there is no file {file}'
        for folder in (self.midi, self.wav):
            if folder and not os.path.isdir(folder):
                yield f'{folder} is not a folder'


FOLDER_NAME = r'\w[\w.-]{0,59}'


# ---------------------------------------------------------------------------------------------------------------------
# Settings: what all the scripts share


def near_miss(word, known):
    close = difflib.get_close_matches(word, list(known), 1)
    return f'; did you mean {close[0]}?' if close else ''


def read_settings(cls, description, argv=None, positional=None):
    """Make a command line of the dataclass cls, read it, and return the settings.

    The field's name is the option, its type converts the text, the comment behind it in the source is the help.
    Whatever is wrong is collected, and reported in one message that ends the program (SystemExit, status 1).
    """
    if hasattr(sys.stdout, 'reconfigure'):
        sys.stdout.reconfigure(errors='replace')  # a name that the console cannot show is no reason to fail
    comments = dict(re.findall(r'^    (\w+): .*? # (.*)$', inspect.getsource(cls), re.M))
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False, usage='%(prog)s [--key=value ...]')
    for field in fields(cls):
        default = '' if field.default in (None, '') else f' [{"off" if field.default is False else field.default}]'
        # Everything is let through as text, also a missing value: argparse would stop at the first mistake.
        parser.add_argument(field.name if field.name == positional else f'--{field.name}', default=argparse.SUPPRESS,
                            nargs='*' if field.type is list else '?', metavar=field.name.upper(),
                            help=(comments.get(field.name, '') + default).replace('%', '%%'))
    given, unknown = parser.parse_known_args(argv)
    types = {field.name: field.type for field in fields(cls)}
    problems = []
    for word in unknown:
        name, _, value = word.lstrip('-').partition('=')
        hint = f'; write {value or "its name"} alone' if name == positional else near_miss(name, types)
        problems.append(f'{word} is not a setting{hint}')
    said = [word.split('=')[0] for word in (sys.argv[1:] if argv is None else argv)]
    problems += [f'--{name} is given {said.count(f"--{name}")} times: give it once' for name in types if said.count(f'--{name}') > 1]
    values = {}
    for name, word in vars(given).items():
        try:
            if types[name] is bool:
                values[name] = {None: True, 'on': True, 'off': False}[word]  # --compile alone means on
            elif word:
                values[name] = word if types[name] is list else types[name](word)
            else:
                problems.append(f'{"" if name == positional else "--"}{name} needs a value')
        except (ValueError, KeyError):
            kind = {int: 'a whole number', float: 'a number', bool: 'on or off'}[types[name]]
            problems.append(f'--{name}={word} must be {kind}')
    settings = cls(**values)
    settings.given = list(values)
    problems += settings.problems()
    if problems:
        raise SystemExit('\n  '.join([f'{parser.prog} did nothing, because', *problems]) + '\nSee --help.')
    return settings


# ---------------------------------------------------------------------------------------------------------------------
# Files: nothing half-written is ever taken for the whole


def rename(aside, path):
    """os.replace, which Windows refuses while another program (Excel, a virus scanner) has path open: then wait for it."""
    for attempt in range(100):
        try:
            return os.replace(aside, path)
        except PermissionError as error:
            if not hasattr(error, 'winerror'):  # only Windows has it; elsewhere waiting does not help
                raise
            if attempt == 3:
                print(f'another program seems to have {path} open: close it there; waiting for half a minute', file=sys.stderr)
            time.sleep(0.3)
    os.replace(aside, path)


def write_aside(path, data):
    """Write bytes to path so that path is never seen half-written: first beside it, then renamed."""
    aside = path.with_name(f'{path.name}.{os.getpid()}.part')  # its own: another process may be writing the same file
    try:
        with open(aside, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        rename(aside, path)
    except OSError as error:
        raise SystemExit(f'could not write {path}: {error.strerror}')
    finally:
        with contextlib.suppress(OSError):  # it is gone already, unless an error or Ctrl-C came first
            aside.unlink()


def make_folder(path):
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f'could not make the folder {path}: {error.strerror}')
    return path


def write_dataset(name, splits, meta):
    """Write data/<name>/<split>.bin for every split (an array of token ids) and, last, meta.json, which has their checksums:
    where only some of the files are new, read_tokens refuses them."""
    folder = make_folder(Path('data') / name)
    dtype = np.uint8 if meta['vocab_size'] <= 256 else np.uint16
    splits = {split: tokens.astype(dtype) for split, tokens in splits.items()}
    for split, tokens in splits.items():
        write_aside(folder / f'{split}.bin', tokens.tobytes())
    meta = dict(meta, splits={split: len(tokens) for split, tokens in splits.items()},
                checksums={split: hashlib.sha256(tokens).hexdigest() for split, tokens in splits.items()})
    write_aside(folder / 'meta.json', json.dumps(meta, indent=1).encode())
    counts = ', '.join(f'{split} {len(tokens):,}' for split, tokens in splits.items())
    print(f'{folder}: {counts} tokens, a vocabulary of {meta["vocab_size"]}')


def check_meta(meta):
    """ValueError that names what is wrong unless meta is what write_dataset writes; a stranger may have written it."""
    def whole(least, most, *numbers):
        return all(type(number) is int and least <= number <= most for number in numbers)

    try:
        kind, V, splits, text = meta['modality'], meta['vocab_size'], meta['splits'], meta.get('characters')
        labels, n = meta.get('labels'), len(meta.get('labels', ()))
        sizes = dict(music=388, audio=256, listops=len(SYMBOLS), bytes=256 + n, pixels=256 + n)
        right = dict(
            modality=kind in ('text', *sizes),
            vocab_size=whole(1, 65536, V) and V == sizes.get(kind, V),
            labels=labels is None if kind not in LABELLED else type(labels) is list and 1 < n < V and all(
                type(label) is str and label.isprintable() for label in labels),
            examples=kind not in LABELLED or set(splits) == {'train', 'val', 'test'} and all(
                whole(2, 10 ** 6, min(meta['pieces'][split]), max(meta['pieces'][split])) for split in splits),
            splits={'train', 'val'} <= set(splits) and whole(0, 10 ** 12, *splits.values()),
            checksums=all(type(meta['checksums'][split]) is str for split in splits),
            characters=kind != 'text' or len(set(text.encode().decode())) == len(text) == V,  # half a character fails
            sample_rate=kind != 'audio' or whole(1000, 10 ** 6, meta['sample_rate']),
            pieces=all(whole(1, 10 ** 12, *meta['pieces'][split]) and sum(meta['pieces'][split]) == count
                       for split, count in splits.items() if 'pieces' in meta))
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # not there, or of another type
        raise ValueError(f'{type(error).__name__}: {error}')
    if not all(right.values()):
        raise ValueError(f'wrong: {", ".join(key for key in right if not right[key])}')


def read_meta(name):
    """data/<name>/meta.json, checked. Ends the program with one sentence (SystemExit) where it is something else."""
    path = Path('data') / name / 'meta.json'
    try:
        meta = json.loads(path.read_bytes())
        check_meta(meta)
    except (OSError, ValueError, RecursionError) as error:
        raise SystemExit(f'{path} is not what prepare_data.py writes today ({error}): prepare {name} again')
    return meta


def first_label(meta):
    """The token id of meta['labels'][0]: the labels are the last ids of the vocabulary."""
    return meta['vocab_size'] - len(meta['labels'])


def read_tokens(name, split, meta):
    """The tokens of data/<name>/<split>.bin, uint8 or uint16 (N,); SystemExit where they are not those meta tells of."""
    path = Path('data') / name / f'{split}.bin'
    try:
        tokens = np.fromfile(path, np.uint8 if meta['vocab_size'] <= 256 else np.uint16)
    except OSError as error:
        raise SystemExit(f'could not read {path}: {error.strerror}; prepare {name} again')
    if (len(tokens) != meta['splits'][split] or tokens.max(initial=0) >= meta['vocab_size']
            or hashlib.sha256(tokens).hexdigest() != meta['checksums'][split]
            or 'labels' in meta and (tokens[np.cumsum(meta['pieces'][split]) - 1] < first_label(meta)).any()):
        raise SystemExit(f'{path} is not what meta.json says it is: prepare {name} again')
    return tokens


def sha256_of(path):
    try:
        with open(path, 'rb') as file:
            return hashlib.file_digest(file, 'sha256').hexdigest()
    except OSError as error:
        raise SystemExit(f'could not read {path}: {error.strerror}')


def download(url, path, size=None, sha256=None):
    """Fetch url to path, checked by size (bytes) and sha256 where they are known.

    A broken connection leaves path.part, which the next attempt, or the next run, continues where the size is known. Ends
    the program with one sentence (SystemExit) where the file cannot be had.
    """
    if path.exists():
        if size is None or path.stat().st_size == size and sha256_of(path) == sha256:
            return
        print(f'{path} is not the file it should be (wrong size or sha256): downloading it again')
    by_hand = f'Download {url} by hand and put it at {path}'
    part = path.with_name(path.name + '.part')
    make_folder(path.parent)
    reason = 'too many broken connections'
    for attempt in range(5):
        have = part.stat().st_size if size and part.exists() else 0  # what cannot be checked is not continued
        try:
            if size is None or have < size:
                request = urllib.request.Request(url, headers={'Range': f'bytes={have}-'} if have else {})
                with urllib.request.urlopen(request, timeout=30) as response:
                    if response.status != 206:  # the server sends everything, whatever was asked for
                        have = 0
                    total = size or int(response.headers.get('Content-Length', 0))  # 0: nobody knows
                    with open(part, 'ab' if have else 'wb') as file:
                        while (not size or have <= size) and (block := response.read(1 << 18)):  # <=: too long shows
                            file.write(block)
                            have += len(block)
                            print(f'\r{path.name}: {have / 1e6:.1f} of {total / 1e6 or math.nan:.1f} MB', end='', flush=True)
                print()
                if have < total:
                    reason = f'the connection broke after {have:,} of {total:,} bytes'
                    continue
        except BrokenPipeError:  # whoever read the line of progress is gone
            raise
        except (OSError, ValueError, http.client.HTTPException) as error:  # the network's errors, the disk's, odd headers
            reason = getattr(error, 'reason', None) or error
            if attempt < 4 and part.exists() and part.stat().st_size > 0:
                time.sleep(attempt)
                continue
            raise SystemExit(f'could not get {url}: {reason}. {by_hand}, then run this again.')
        if size is None or have == size and sha256_of(part) == sha256:
            try:
                return rename(part, path)
            except OSError as error:
                raise SystemExit(f'could not write {path}: {error.strerror}')
        reason = f'what arrived has not the size {size:,} and the sha256 {sha256}'
        part.unlink()  # nothing in it can be trusted: once more from the start
    raise SystemExit(f'could not get {url}: {reason}. {by_hand}, then run this again.')


@contextlib.contextmanager
def opened(archive):
    """The zip file, of which members are only ever read into memory: nothing is unpacked, so no name can lead anywhere."""
    try:
        with zipfile.ZipFile(archive) as file:
            yield file
    except BrokenPipeError:  # whoever read what is printed meanwhile is gone
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, OSError, RuntimeError) as error:  # the last: "encrypted"
        raise SystemExit(f'{archive} is damaged ({error}): delete it, and run this again')


# ---------------------------------------------------------------------------------------------------------------------
# Text


def encode_text(text, characters):
    """The index of every character of text in the string characters: int array (len(text),).

    Raises ValueError that names the characters which are not there.
    """
    codes = np.frombuffer(text.encode('utf-32-le', 'surrogatepass'), np.uint32)  # one number a character
    table = np.full(0x110000, -1, np.int32)  # code point -> token
    table[[ord(c) for c in characters]] = np.arange(len(characters))
    tokens = table[codes]
    if (tokens < 0).any():
        missing = ''.join(sorted({chr(c) for c in codes[tokens < 0]}))
        raise ValueError(f'{missing!r} is not in the alphabet {characters!r}')
    return tokens


def decode_text(tokens, characters):
    return ''.join(characters[t] for t in tokens)


def text8_alphabet(text):
    """Any English text as text8 has it: a-z and single spaces, digits spelled out, all else a space."""
    text = text.lower()
    for digit, word in enumerate('zero one two three four five six seven eight nine'.split()):
        text = text.replace(str(digit), f' {word} ')
    return re.sub('[^a-z]+', ' ', text)


def text_meta(text, characters, source):
    return dict(modality='text', vocab_size=len(characters), characters=characters, source=source,
                sha256=hashlib.sha256(text.encode()).hexdigest())


def split_90_5_5(tokens):
    """train, val and test in the order of the text, as text8 is split."""
    n = len(tokens)
    a, b = n * 90 // 100, n * 95 // 100
    return dict(train=tokens[:a], val=tokens[a:b], test=tokens[b:])


def prepare_stdlib():
    """Python's own library: on every machine, and with structure at every scale, from characters to files."""
    root = Path(sysconfig.get_path('stdlib'))
    left_out = {'test', 'tests', 'idle_test', 'site-packages', 'dist-packages', '__pycache__'}
    files = [file for file in root.rglob('*.py') if file.is_file() and not left_out & set(file.relative_to(root).parts)]
    # The hash of its name decides a file's place: the same on every machine, and the tail is no one corner of the
    # library (in the order of the names, validation would be xml and zipfile, and training all of the code tables).
    files.sort(key=lambda file: hashlib.sha256(file.relative_to(root).as_posix().encode()).digest())
    texts = [file.read_text(encoding='utf-8', errors='replace') for file in files]
    if not texts:
        raise SystemExit(f'no .py files in {root}: this Python came without its source; use --input FILE --name NAME')
    train = texts[:len(texts) * 9 // 10]  # whole files: none is on both sides
    text, held_out = ''.join(train), ''.join(texts[len(train):])
    characters = ''.join(sorted(set(text + held_out)))
    write_dataset('stdlib', dict(train=encode_text(text, characters), val=encode_text(held_out, characters)),
                  text_meta(text + held_out, characters, f'the standard library of Python {sys.version.split()[0]}, '
                            f'{len(train)} files for training and {len(texts) - len(train)} others for validation'))


TEXT8_CHARACTERS = ' abcdefghijklmnopqrstuvwxyz'
TEXT8 = dict(url='http://mattmahoney.net/dc/text8.zip', size=31344016,
             sha256='a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232')


def prepare_text8():
    """The first 100 million characters of a cleaned English Wikipedia, the usual benchmark of character models."""
    archive = Path('data/text8/text8.zip')
    download(**TEXT8, path=archive)
    with opened(archive) as file:
        text = file.read('text8').decode('ascii')
    write_dataset('text8', split_90_5_5(encode_text(text, TEXT8_CHARACTERS)), text_meta(text, TEXT8_CHARACTERS, TEXT8['url']))


def prepare_input(files, name, alphabet):
    """UTF-8 text files, one behind the other: all of their characters, or the 27 of text8."""
    texts = []
    for file in files:
        try:
            texts.append(Path(file).read_bytes().decode('utf-8-sig'))  # bytes: line ends stay what they are
        except UnicodeDecodeError as error:
            raise SystemExit(f'{file} is not UTF-8 (byte {error.start} is {error.object[error.start]:#04x}): save it as UTF-8')
        except OSError as error:
            raise SystemExit(f'could not read {file}: {error.strerror}')
    text = text8_alphabet(''.join(texts)) if alphabet == 'text8' else ''.join(texts)
    characters = TEXT8_CHARACTERS if alphabet == 'text8' else ''.join(sorted(set(text)))
    if len(text) < 1000:
        raise SystemExit(f'{", ".join(files)}: {len(text)} characters are too few to train on; give at least 1,000')
    if len(set(text)) < 2:
        raise SystemExit(f'{", ".join(files)}: {text[0]!r} is its only character, and there is nothing to learn from that')
    if len(characters) > 65536:
        raise SystemExit(f'{len(characters):,} different characters do not fit into 16 bits; try --alphabet=text8')
    write_dataset(name, split_90_5_5(encode_text(text, characters)),
                  text_meta(text, characters, ', '.join(Path(file).name for file in files)))


# ---------------------------------------------------------------------------------------------------------------------
# Music: a MIDI file to notes, notes to the 388 events of Performance RNN


def variable_length(data, at):
    """The number at data[at], 7 bits a byte, high bits first, the last byte below 128, and the index after it."""
    number = 0
    for at in range(at, at + 4):
        number = number << 7 | data[at] & 0x7F
        if data[at] < 0x80:
            return number, at + 1
    raise ValueError('this MIDI file holds a number of more than 4 bytes, the most it may have: the file is damaged')


def track_events(track):
    """The channel messages (tick, status, data byte, data byte), tempos (tick, 0xFF, microseconds a quarter note, 0)
    and end (tick, 0, 0, 0) of an MTrk chunk; IndexError where an event is cut off, ValueError where it is none."""
    events, at, tick, status = [], 0, 0, 0
    while at != len(track):                         # beyond the end, the next index fails
        delta, at = variable_length(track, at)
        tick += delta
        if track[at] >= 0x80:                       # else running status: that of the message before
            status, at = track[at], at + 1
        if status in (0xF0, 0xF7, 0xFF):            # system exclusive or meta event
            kind = track[at] if status == 0xFF else None
            length, start = variable_length(track, at + (status == 0xFF))
            at, status = start + length, 0          # these end running status
            if kind == 0x2F:                        # end of track
                break
            if kind == 0x51 and length == 3:
                events.append((tick, 0xFF, int.from_bytes(track[start:at], 'big'), 0))
        else:
            size = 1 if 0xC0 <= status < 0xE0 else 2
            first, second = track[at], track[at + size - 1]
            if not 0x80 <= status < 0xF0 or max(first, second) > 127:
                raise ValueError(f'{status:02X} {first:02X} {second:02X} is no MIDI message: the file is damaged')
            events.append((tick, status, first, second))
            at += size
    return events + [(tick, 0, 0, 0)]  # which only says how long the track is


def read_midi(data):
    """Notes of a Standard MIDI File (bytes): [(start, end, pitch, velocity)] in seconds, ordered by (start, pitch).

    A note_off ends the oldest note_on of its channel and pitch. While the sustain pedal is down (controller 64 at 64 or
    more) a note sounds until pedal-up or the next onset of its pitch. What never ends, ends with the piece. Left out:
    percussion (channel 10), notes that end on the tick of their onset. ValueError: the file is damaged or foreign.
    Source: MIDI Manufacturers Association, Standard MIDI Files 1.0, formats 0 and 1."""
    if data[:4] != b'MThd' or len(data) < 14:
        raise ValueError(f'a MIDI file starts with an MThd chunk of 14 bytes, this file with {bytes(data[:14])!r}')
    size, form, tracks, division = struct.unpack('>IHHH', data[4:14])
    smpte = {0xE8: 24, 0xE7: 25, 0xE3: 30000 / 1001, 0xE2: 30}.get(division >> 8)       # frames a second, 0xE8 is -24
    rate = smpte * (division & 0xFF) if smpte else 1_000_000 * division
    if form > 1 or not rate or division >= 0x8000 and not smpte:
        raise ValueError(f'MIDI format {form} with division 0x{division:04X} is not read: the format must be 0 or 1, '
                         'the division ticks a quarter note or ticks a frame of 24, 25, 29.97 or 30 a second')
    at, events = 8 + size, []
    while tracks:
        start, at = at + 8, at + 8 + int.from_bytes(data[at + 4:at + 8], 'big')
        try:
            if at > len(data):
                raise IndexError
            if data[start - 8:start - 4] == b'MTrk':            # other chunks are skipped, as the standard asks
                events.extend(track_events(data[start:at]))
                tracks -= 1
        except IndexError:
            raise ValueError(f'this MIDI file is cut short: {tracks} of its tracks are not complete') from None
    events.sort(key=lambda event: event[0])         # stable: within a tick, the order of the file
    # clock / rate is the time in seconds; as an integer (ticks * microseconds a quarter note, or ticks alone) the clock does
    # not drift, however often the tempo changes. Notes wait for their end in pressed: key down, by channel and pitch;
    # ringing: key up but pedal down, by channel; struck: what the next onset of that pitch ends, if the pedal is down.
    notes, clock, last_tick, tempo = [], 0, 0, 1 if smpte else 500_000
    pressed, struck, ringing, pedal = defaultdict(deque), defaultdict(list), defaultdict(list), defaultdict(bool)
    for tick, status, value, velocity in events:
        clock, last_tick = clock + (tick - last_tick) * tempo, tick
        kind, channel, key, ended = status >> 4, status & 15, (status & 15, value), []
        if status == 0xFF and not smpte:
            tempo = value or tempo                  # a quarter note cannot last 0 microseconds
        elif kind == 0xB and value == 64:
            pedal[channel] = velocity >= 64
            ended = [] if pedal[channel] else ringing.pop(channel, [])
        elif kind == 9 and velocity and channel != 9:
            ended = struck.pop(key, []) if pedal[channel] else []
            note = [clock, float('inf'), value, velocity]
            for group in (notes, pressed[key], struck[key]):
                group.append(note)
        elif kind in (8, 9) and pressed[key]:       # velocity 0 is a note_off too
            note = pressed[key].popleft()
            (ringing[channel] if pedal[channel] else ended).append(note)
        for note in ended:
            note[1] = min(note[1], clock)           # the first end counts
    if clock > 24 * 3600 * rate:
        raise ValueError(f'this MIDI file lasts {clock / rate:.3g} seconds; more than 24 hours are taken for damage')
    notes = [(start / rate, min(end, clock) / rate, pitch, velocity) for start, end, pitch, velocity in notes]
    return sorted((note for note in notes if note[0] < note[1]), key=lambda note: (note[0], note[2]))


def sorted_notes(notes, longest):
    """The notes in the order of (start, pitch); ValueError where one is no note or ends after `longest` seconds."""
    notes = sorted(notes, key=lambda note: (note[0], note[2]))
    for start, end, pitch, velocity in notes:
        if not (0 <= start <= end <= longest and 0 <= pitch <= 127 and 1 <= velocity <= 127):
            raise ValueError(f'a note from {start} to {end} s of pitch {pitch} and velocity {velocity} breaks a rule: '
                             f'0 <= start <= end <= {longest} s, pitch 0..127, velocity 1..127')
    return notes


def encode_notes(notes):
    """Notes [(start, end, pitch, velocity)] in seconds -> event ids, uint16 (T,), of the 388-event vocabulary.

    Ids: 0..127 note_on pitch, 128..255 note_off pitch, 256..355 shift of 1..100 steps of 10 ms, 356..387 velocity bin.
    Every time is rounded to the nearest step, int(100 * time + 0.5); a note left with no length gets one step. Within a step
    note_offs come before note_ons, so that a repeated note is struck again, and both in the order of (start, pitch) of
    the notes. A velocity bin, (velocity - 1) // 4, is written where it changes. ValueError for what is no note.
    Source: the vocabulary of Performance RNN and Music Transformer.
    """
    events = []
    for start, end, pitch, velocity in sorted_notes(notes, 10 ** 7):
        first = int(100 * start + 0.5)
        last = max(first + 1, int(100 * end + 0.5))
        events += [(first, pitch, 356 + (velocity - 1) // 4), (last, 128 + pitch, None)]
    tokens, now, last_velocity = [], 0, None
    # stable: the note_offs of a step stay before its note_ons, as their notes began earlier
    for step, token, velocity in sorted(events, key=lambda event: event[0]):
        while now < step:
            shift = min(step - now, 100)
            tokens.append(255 + shift)
            now += shift
        if velocity not in (None, last_velocity):
            tokens.append(velocity)
            last_velocity = velocity
        tokens.append(token)
    return np.array(tokens, dtype=np.uint16)  # (T,)


# ---------------------------------------------------------------------------------------------------------------------
# Sound: a WAV file to samples, samples to 256 levels


def read_wav(data):
    """Read the bytes of a PCM WAV file: (samples float32 (N,) in [-1, 1], sample rate in Hz).

    8, 16, 24 or 32 bits; several channels are averaged. A data chunk of size 0 (where the size of the whole file is wrong,
    too), or of about 2 or 4 GiB that are not there, was written by a program that streamed and could not come back to fill
    the size in: it lasts to the end of the file. All else that is not plain, complete PCM raises ValueError. Layout:
    Multimedia Programming Interface and Data Specifications 1.0 (IBM, Microsoft, 1991). Python's own wave refuses the
    extensible header before 3.12 and returns a cut-off file without a word.
    """
    remedy = 'convert it: ffmpeg -i old.wav -c:a pcm_s16le new.wav'
    if data[:4] != b'RIFF' or data[8:12] != b'WAVE':
        raise ValueError(f'not a WAV file (it starts with {bytes(data[:12])}, not RIFF....WAVE): {remedy}')
    start, n_chunks, fmt = 12, 0, None
    while start + 8 <= len(data) and n_chunks < 1000:  # hostile files could hold millions of empty ones
        name, size = struct.unpack_from('<4sI', data, start)
        start, n_chunks = start + 8, n_chunks + 1
        if name == b'data':
            break
        if name == b'fmt ':
            fmt = data[start:start + min(size, 40)]
        start += size + size % 2  # a chunk of odd size is followed by one byte of padding
    else:
        raise ValueError('the WAV file has no data among its first 1,000 chunks: it is damaged or cut off')
    if fmt is None or len(fmt) < 16:
        raise ValueError('the WAV file does not describe its samples (no whole fmt chunk before data): ' + remedy)
    kind, channels, rate, _, frame_size, bits = struct.unpack_from('<HHIIHH', fmt)
    if kind == 0xFFFE and len(fmt) == 40:  # WAVE_FORMAT_EXTENSIBLE: the first two bytes of its GUID are the old code
        kind = struct.unpack_from('<H', fmt, 24)[0]
    if kind != 1:
        what = {3: 'floating point', 6: 'A-law', 7: 'mu-law'}.get(kind, 'unknown here')
        raise ValueError(f'the WAV file has sample format {kind} ({what}) and only 1 (PCM) is read: {remedy}')
    if bits not in (8, 16, 24, 32) or channels == 0 or frame_size != channels * bits // 8:
        raise ValueError(f'the WAV header says {bits} bits, {channels} channels and {frame_size} bytes a frame; these '
                         f'must be 8, 16, 24 or 32 bits, at least one channel and their product in bytes: {remedy}')
    if not 1000 <= rate <= 1_000_000:
        raise ValueError(f'the WAV header says {rate} samples a second, not 1,000..1,000,000: it is damaged')
    present = len(data) - start
    if size > present and size < 0x7FFF0000:
        raise ValueError(f'the WAV file is cut off: {size:,} bytes of sound promised, {present:,} there')
    if size == 0 and struct.unpack_from('<I', data, 4)[0] != len(data) - 8:
        size = present
    n_frames = min(size, present) // frame_size
    if n_frames == 0:
        raise ValueError('the WAV file holds no sound: its data chunk has not one whole frame')

    width = bits // 8
    raw = np.frombuffer(data, np.uint8, n_frames * frame_size, start).reshape(-1, width)
    # Every width becomes a 32-bit integer whose low bytes are zero, so that one scale serves them all.
    padded = np.zeros((len(raw), 4), np.uint8)
    padded[:, 4 - width:] = raw
    if width == 1:
        padded[:, 3] ^= 128  # 8-bit samples are unsigned, 128 is silence
    samples = padded.view('<i4').reshape(n_frames, channels).mean(axis=1, dtype=np.float32)  # (N,)
    samples /= 2 ** 31
    return samples, rate


def resample(samples, rate, new_rate):
    """Change the sample rate (Hz, whole numbers) of samples (N,): float32 (round(N * new_rate / rate),).

    Band-limited interpolation (J. O. Smith, "Digital Audio Resampling"): each output is the sum of the inputs around
    its time, weighted by a sinc under a Hann window, 64 zero crossings a side. With F the lower of
    the two Nyquist frequencies, the sinc is cut at 0.92 F: flat within 1% up to 0.89 F, below -70 dB from F on, so that
    nothing audible folds back. Silence is assumed before and after. Peaks may overshoot [-1, 1] a little. Equal rates
    return samples itself.
    """
    if min(rate, new_rate) < 1 or max(rate, new_rate) > 1000 * min(rate, new_rate):
        raise ValueError(f'cannot resample from {rate} to {new_rate} Hz: both must be positive, the ratio at most 1000')
    if rate == new_rate or len(samples) == 0:
        return samples
    shared = math.gcd(rate, new_rate)
    up, down = new_rate // shared, rate // shared
    cutoff = 0.92 * min(1, up / down)  # in units of the input's Nyquist frequency
    reach = math.ceil(64 / cutoff)
    padded = np.pad(np.asarray(samples, np.float32), reach)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)  # (N, 2 reach + 1), a view
    out = np.empty(round(len(samples) * new_rate / rate), np.float32)
    # Output n lies at input time n * down / up. Every up-th output lies equally far behind an input sample (is of the
    # same phase) and shares its kernel. One phase at a time, so that the 16,000 of 44101 -> 16000 Hz need no memory.
    for phase in range(min(up, len(out))):
        first, behind = divmod(phase * down, up)
        times = np.arange(-reach, reach + 1) - behind / up
        hann = np.cos(np.pi / 2 * np.clip(times * cutoff / 64, -1, 1)) ** 2
        kernel = np.sinc(cutoff * times) * hann
        kernel = (kernel / kernel.sum()).astype(np.float32)  # sum 1: a constant stays what it is
        n = len(out[phase::up])
        # einsum reads the overlapping windows where they lie; copied, they would be hundreds of times the signal.
        out[phase::up] = np.einsum('nk,k->n', windows[first::down][:n], kernel)
    return out


def mu_law_encode(samples):
    """Encode samples in [-1, 1] (clipped to it) as 8-bit mu-law levels, mu = 255: uint8 of the same shape.

    Companded e = sign(a) log(1 + 255 |a|) / log 256 (ITU-T G.711 in its continuous form) goes to the nearest of the
    256 values level / 128 - 1 that mu_law_decode knows: zero is exactly 128, every level comes back as itself, and e is
    off by at most 1/256, except above 127.5/128, where 256 would be nearest and 255 is the last (at most 1/128).
    """
    samples = np.clip(np.asarray(samples, np.float32), -1, 1)
    if np.isnan(samples).any():
        raise ValueError(f'{np.isnan(samples).sum():,} of {samples.size:,} samples are NaN: repair what computed them')
    companded = np.sign(samples) * np.log1p(255 * np.abs(samples)) / math.log(256)
    return np.minimum(np.round(128 * (companded + 1)), 255).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------------------------
# Music and sound: many pieces


def encoded(files, encode):
    """(key, tokens) of every (key, name, bytes) of files, when encode has made tokens of the bytes; one at a time.

    A file that cannot be read (ValueError) is named and left out, the rest goes on.
    """
    for n, (key, name, data) in enumerate(files, 1):
        try:
            tokens = encode(data)
            if len(tokens) < 2:
                raise ValueError(f'it holds {len(tokens)} tokens, and it takes 2 to predict one')
            yield key, tokens
        except ValueError as problem:
            print(f'\r{ascii(name)} is left out: {problem}')
        print(f'\r{n} files', end='', flush=True)
    print()


def write_pieces(name, pieces, meta):
    """Write the data set of pieces, (split, tokens) each.

    The pieces of a split stand one behind the other, and meta.json lists their lengths, so that train.py counts no
    prediction across the end of one: no music is glued together that never was. Nor is a file in two splits, since a
    piece is a file.
    """
    of = dict(train=[], val=[], test=[])
    for split, tokens in pieces:
        of[split].append(tokens)
    if not of['train'] or not of['val']:
        raise SystemExit(f'{name}: {len(of["train"])} files for training and {len(of["val"])} for validation could be read, and '
                         'it takes one of each; nothing was written')
    lengths = {split: [len(tokens) for tokens in of[split]] for split in of}
    splits = {split: np.concatenate(of[split]) if of[split] else np.zeros(0, np.uint8) for split in of}
    write_dataset(name, splits, dict(meta, pieces=lengths))


def write_folder(name, folder, suffixes, encode, meta):
    """Write the data set of the files in folder that end in one of suffixes, split 80/10/10 by the hash of their names."""
    folder = Path(folder)

    def files():
        for file in folder.rglob('*'):
            if file.suffix.lower() in suffixes and os.path.isfile(file):  # not file.is_file(), which fails where it may not look
                place = file.relative_to(folder).as_posix()
                try:
                    yield hashlib.sha256(os.fsencode(place)).digest(), place, file.read_bytes()
                except OSError as error:
                    print(f'\r{ascii(place)} is left out: {error.strerror}')

    pieces = sorted(encoded(files(), encode), key=lambda piece: piece[0])
    if len(pieces) < 3:
        raise SystemExit(f'{folder} holds {len(pieces)} readable files that end in {" or ".join(suffixes)}, and the data set is '
                         'split by file: it takes 3, one each for training, validation and test; nothing was written')
    held_out = max(1, round(len(pieces) / 10))
    splits = ['val'] * held_out + ['test'] * held_out + ['train'] * (len(pieces) - 2 * held_out)
    write_pieces(name, zip(splits, (tokens for _, tokens in pieces)), meta)


MUSIC = dict(modality='music', vocab_size=388, encoding='note_on 0-127, note_off 128-255, shift of 1-100 steps of 10 ms '
             '256-355, velocity bin 356-387')
MAESTRO = dict(url='https://storage.googleapis.com/magentadata/datasets/maestro/v3.0.0/maestro-v3.0.0-midi.zip', size=58416533,
               sha256='70470ee253295c8d2c71e6d9d4a815189e35c89624b76d22fce5a019d5dde12c')


def music_tokens(data):
    return encode_notes(read_midi(data))


def prepare_maestro():
    """1,276 piano performances with their pedal, split as their own CSV says (CC BY-NC-SA 4.0)."""
    archive = Path('data/maestro/maestro-v3.0.0-midi.zip')
    download(**MAESTRO, path=archive)
    with opened(archive) as file:
        table = csv.DictReader(io.StringIO(file.read('maestro-v3.0.0/maestro-v3.0.0.csv').decode('utf-8')))
        pieces = ((row['split'].replace('validation', 'val'), row['midi_filename'],
                   file.read('maestro-v3.0.0/' + row['midi_filename'])) for row in table)
        write_pieces('maestro', encoded(pieces, music_tokens), dict(MUSIC, source=MAESTRO['url'], sha256=MAESTRO['sha256']))


def prepare_midi(folder, name):
    """The MIDI files of a folder; what is on channel 10 is percussion, no pitches, and left out."""
    write_folder(name, folder, ('.mid', '.midi'), music_tokens,
                 dict(MUSIC, source=f'the MIDI files of {Path(folder).resolve().name}'))


AUDIO = dict(modality='audio', vocab_size=256, sample_rate=16000, encoding='8-bit mu-law, mu = 255, zero is 128; amplitudes as '
             'they are in the files, not scaled by segment')
YOUTUBEMIX = dict(url='https://huggingface.co/datasets/krandiash/youtubemix/resolve/main/youtube_mix.zip')


def audio_tokens(data):
    samples, rate = read_wav(data)
    return mu_law_encode(resample(samples, rate, AUDIO['sample_rate']))


def prepare_youtubemix():
    """241 minutes of piano at 16 kHz, split by file as SaShiMi does: 0-211, 212-225, 226-240."""
    archive = Path('data/youtubemix/youtube_mix.zip')
    download(**YOUTUBEMIX, path=archive)
    with opened(archive) as file:
        members = {int(found[1]): member for member in file.namelist()
                   if (found := re.fullmatch(r'youtube_mix/out(\d{3})\.wav', member))}
        if set(members) != set(range(241)):
            raise SystemExit(f'{archive} holds {len(members)} of the 241 clips out000.wav .. out240.wav: delete it, and run '
                             'this again')
        pieces = (('train' if n < 212 else 'val' if n < 226 else 'test', members[n], file.read(members[n]))
                  for n in sorted(members))
        write_pieces('youtubemix', encoded(pieces, audio_tokens),
                     dict(AUDIO, source=YOUTUBEMIX['url'], sha256=sha256_of(archive)))


def prepare_wav(folder, name):
    """The WAV files of a folder, at 16 kHz."""
    write_folder(name, folder, ('.wav',), audio_tokens,
                 dict(AUDIO, source=f'the WAV files of {Path(folder).resolve().name}'))


# ---------------------------------------------------------------------------------------------------------------------
# Long Range Arena: a long sequence, then its label as the next token
#
# A piece is an example: its tokens, and last its label. The labels are the last ids of the vocabulary. Nothing is padded
# here; train.py pads from the place of the label on, where a causal model cannot see it.

LABELLED = 'listops', 'bytes', 'pixels'  # the modalities of labelled data
OPERATORS = {'[MIN': min, '[MAX': max, '[MED': lambda digits: int(statistics.median(digits)),
             '[SM': lambda digits: sum(digits) % 10}
SYMBOLS = [*OPERATORS, ']', *'0123456789']  # the digits are last, since the answers are digits


def listops_answer(tokens):
    """The value 0..9 of an expression in SYMBOLS ids. ValueError where it is not one whole expression."""
    lists = [[]]  # the arguments so far of every open bracket, below them the answer
    for symbol in (SYMBOLS[token] for token in tokens):
        if symbol in OPERATORS:
            lists.append([OPERATORS[symbol]])
        elif symbol != ']':
            lists[-1].append(int(symbol))
        elif len(lists) > 1 and len(lists[-1]) > 1:
            operator, *digits = lists.pop()
            lists[-1].append(operator(digits))
        else:
            raise ValueError('a ] closes nothing, or a bracket that holds no digit')
    if len(lists) > 1 or len(lists[0]) != 1:
        raise ValueError('a bracket is not closed' if len(lists) > 1 else 'it is not one list and nothing else')
    return lists[0][0]


def random_expression(rng, max_length):
    """An expression by the rules of the benchmark, as a list of SYMBOLS ids; longer ones are broken off at max_length.

    Down to depth 9, the root being depth 1, an operator with probability 1/4, else a digit; at depth 10 always a digit.
    The four operators, the ten digits and 2..10 arguments are equally likely. Source: Long Range Arena (Tay et al.,
    arXiv 2011.04006), which takes them from ListOps (Nangia and Bowman, arXiv 1804.06028).
    """
    tokens, missing = [], [1]  # how many arguments are still missing, at every depth from the root to here
    while missing and len(tokens) < max_length:
        if missing[-1] == 0:
            missing.pop()
            if missing:
                tokens.append(SYMBOLS.index(']'))
            continue
        missing[-1] -= 1
        # int(n * random()): randrange may draw otherwise in another version of Python, random() never does.
        if len(missing) < 10 and rng.random() < 0.25:
            tokens.append(int(4 * rng.random()))
            missing.append(2 + int(9 * rng.random()))
        else:
            tokens.append(SYMBOLS.index('0') + int(10 * rng.random()))
    return tokens


def listops_chunk(job):
    """500 expressions, max_length / 4 < length < max_length, each with its answer behind it, as bytes of SYMBOLS ids."""
    seed, chunk, max_length = job
    rng, found = random.Random(f'{seed} {chunk}'), []
    while len(found) < 500:
        tokens = random_expression(rng, max_length)
        if max_length // 4 < len(tokens) < max_length:
            found.append(bytes([*tokens, SYMBOLS.index('0') + listops_answer(tokens)]))
    return found


HELD_OUT = 2000  # expressions each for validation and test


def prepare_listops(max_length=2000, examples=96_000, seed=1337):
    """Nested lists of digits to evaluate, as Long Range Arena has them with 500 < length < 2000; no two are equal."""
    total, found, chunks, begin = examples + 2 * HELD_OUT, {}, 0, time.perf_counter()
    # Ctrl-C is for this process alone: those of the pool inherit that it is ignored, and on Windows, where they do not, are told.
    ctrl_c = signal.signal(signal.SIGINT, signal.SIG_IGN)
    with multiprocessing.Pool(initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)) as pool:
        signal.signal(signal.SIGINT, ctrl_c)
        while len(found) < total:  # every chunk has a seed of its own: it does not matter which core makes it
            more = math.ceil((total - len(found)) / 500)
            for made in pool.imap(listops_chunk, [(seed, chunk, max_length) for chunk in range(chunks, chunks + more)]):
                found.update(dict.fromkeys(made))  # a dict keeps their order, and each once
                left = (time.perf_counter() - begin) / len(found) * max(0, total - len(found))
                print(f'\r{min(len(found), total):,} of {total:,} expressions, {left:.0f} s left ', end='', flush=True)
            chunks += more
    print()
    found = list(found)
    random.Random(seed).shuffle(found)  # the short ones are all found early, and belong into every split
    splits = ['train'] * examples + ['val'] * HELD_OUT + ['test'] * HELD_OUT
    write_pieces('listops' if max_length == 2000 else f'listops-{max_length}',
                 ((split, np.frombuffer(tokens, np.uint8)) for split, tokens in zip(splits, found)),
                 dict(modality='listops', vocab_size=len(SYMBOLS), labels=list('0123456789'), source='made by the rules of Long '
                      f'Range Arena, {max_length // 4} < length < {max_length}, seed {seed}'))


def members(archive, pattern):
    """(match, bytes) of every file of a .tar.gz whose whole name matches the pattern; like opened, it unpacks nothing."""
    try:
        with tarfile.open(archive, 'r|gz') as file:
            for member in file:
                if member.isfile() and (found := re.fullmatch(pattern, member.name)):
                    yield found, file.extractfile(member).read()
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise SystemExit(f'{archive} is damaged ({error}): delete it, and run this again')


IMDB = dict(url='https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz', size=84125825,
            sha256='c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe')
REVIEWS = 12500  # of each kind, to train on and to test


def prepare_imdb(max_length=4096):
    """Film reviews as bytes, cut to max_length: bad or good. The official test split; of the official training split the
    tenth whose names have the lowest SHA-256 is for validation, since there is no official one."""
    archive = Path('data/imdb/aclImdb_v1.tar.gz')
    download(**IMDB, path=archive)
    reviews = []
    for found, data in members(archive, r'aclImdb/(train|test)/(neg|pos)/\d+_\d+\.txt'):
        content = np.frombuffer(data[:max_length], np.uint8).astype(np.uint16)
        if len(content):
            place = hashlib.sha256(found[0].encode()).digest()
            reviews.append((place, found[1], np.append(content, np.uint16(256 + (found[2] == 'pos')))))
            print(f'\r{len(reviews):,} reviews', end='', flush=True)
    print()
    counts = [sum(split == wanted and tokens[-1] == label for _, split, tokens in reviews)
              for wanted in ('train', 'test') for label in (256, 257)]
    if counts != [REVIEWS] * 4:
        raise SystemExit(f'{archive} holds {counts} reviews (neg and pos to train on, neg and pos to test), not {REVIEWS:,} '
                         'each: delete it, and run this again')
    reviews.sort(key=lambda review: review[0])  # the hash decides the order
    training = [tokens for _, split, tokens in reviews if split == 'train']
    pieces = [('val' if n < len(training) // 10 else 'train', tokens) for n, tokens in enumerate(training)]
    pieces += [('test', tokens) for _, split, tokens in reviews if split == 'test']
    write_pieces('imdb' if max_length == 4096 else f'imdb-{max_length}', pieces,
                 dict(modality='bytes', vocab_size=258, labels=['neg', 'pos'], source=IMDB['url'], sha256=IMDB['sha256'],
                      encoding=f'the first {max_length} bytes of a review; val: a tenth of the official training split'))


CIFAR10 = dict(url='https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz', size=170052171,
               sha256='c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd')
PICTURES = 10000  # in each of its six files


def prepare_cifar10():
    """Pictures of 32 x 32 pixels, row by row, in grey: the luma of ITU-R BT.601, 0.299 R + 0.587 G + 0.114 B, rounded.
    The official test split; the last tenth of the others is for validation."""
    archive = Path('data/cifar10/cifar-10-binary.tar.gz')
    download(**CIFAR10, path=archive)
    names = [f'cifar-10-batches-bin/{name}.bin' for name in (*(f'data_batch_{n}' for n in range(1, 6)), 'test_batch')]
    files = {found[0]: np.frombuffer(data, np.uint8) for found, data in members(archive, '|'.join(map(re.escape, names)))}
    if any(name not in files or files[name].size != PICTURES * 3073 or files[name][::3073].max() > 9 for name in names):
        raise SystemExit(f'{archive} does not hold {PICTURES:,} labelled pictures in each of {", ".join(names)}: delete it, '
                         'and run this again')
    records = np.concatenate([files[name] for name in names]).reshape(-1, 3073)  # (60000, 3073): label, R, G, B
    planes = records[:, 1:].reshape(-1, 3, 1024)
    grey = sum(weight * planes[:, n].astype(np.uint32) for n, weight in enumerate((299, 587, 114))) + 500
    labels = 256 + records[:, :1].astype(np.uint32)  # (60000, 1)
    tokens = np.concatenate((grey // 1000, labels), axis=1).astype(np.uint16)  # (60000, 1025)
    splits = ['train'] * (PICTURES * 9 // 2) + ['val'] * (PICTURES // 2) + ['test'] * PICTURES
    write_pieces('cifar10', zip(splits, tokens),
                 dict(modality='pixels', vocab_size=266, source=CIFAR10['url'], sha256=CIFAR10['sha256'],
                      labels='airplane automobile bird cat deer dog frog horse ship truck'.split(),
                      encoding='32 rows of 32 grey levels, (299 R + 587 G + 114 B + 500) // 1000'))


# ---------------------------------------------------------------------------------------------------------------------
# The command line

DATASETS = dict(stdlib=prepare_stdlib, text8=prepare_text8, maestro=prepare_maestro, youtubemix=prepare_youtubemix,
                listops=prepare_listops, imdb=prepare_imdb, cifar10=prepare_cifar10)


def main(argv=None):
    settings = read_settings(Settings, __doc__, argv, positional='dataset')
    if settings.input:
        prepare_input(settings.input, settings.name, settings.alphabet)
    elif settings.midi:
        prepare_midi(settings.midi, settings.name)
    elif settings.wav:
        prepare_wav(settings.wav, settings.name)
    else:
        options = {name: getattr(settings, name) for name in ('max_length', 'examples', 'seed')}
        DATASETS[settings.dataset or 'stdlib'](**{name: value for name, value in options.items() if value is not None})


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit('\nstopped; what is half done does not count as a data set')
    except BrokenPipeError:  # head, or less
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where Python may flush what is left
        raise SystemExit('stopped: nobody reads any longer what is printed')
