"""
Turn text into tokens on disk: data/<name>/{train,val[,test]}.bin and meta.json.

    python prepare_data.py                                     the Python standard library's own source; no download
    python prepare_data.py text8                               100 MB of Wikipedia in 27 characters (31 MB download)
    python prepare_data.py --input book.txt --name book        your own UTF-8 text, several files if you like

A .bin is nothing but the tokens: uint8 where vocab_size <= 256, else uint16. meta.json says what they mean.
"""

import argparse
import difflib
import hashlib
import http.client
import inspect
import json
import os
import re
import sys
import sysconfig
import time
import urllib.request
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np


@dataclass
class Settings:
    dataset: str = ''  # what to prepare: stdlib (the default) or text8; leave it out with --input
    input: list = None  # your own UTF-8 text file, or several in the order they are to be read; needs --name
    name: str = ''  # what to call it: the tokens go to data/<name>/
    alphabet: str = 'all'  # all: every character of the text; text8: only a-z and space (digits spelled out)

    def problems(self):
        """Every contradiction in the settings, one sentence each."""
        if self.dataset not in ('', *DATASETS):
            yield f'{self.dataset!r} is not a data set I know: {", ".join(DATASETS)}{near_miss(self.dataset, DATASETS)}'
        if self.alphabet not in ('all', 'text8'):
            yield f'--alphabet={self.alphabet} is not one of all, text8'
        if self.input and self.dataset in DATASETS:
            yield f'choose one: the data set {self.dataset}, or your own text with --input'
        if self.input and not self.name:
            yield '--input needs --name: what shall the data set be called?'
        if not self.input and (self.name or self.alphabet != 'all'):
            yield '--name and --alphabet go with --input FILE'
        if self.name in DATASETS:
            yield f'--name={self.name} is taken by the data set of that name: choose another'
        if self.name and not re.fullmatch(r'[\w-][\w.-]*', self.name):
            yield f'--name={self.name} becomes the name of a folder: use letters, digits, _, - and .'
        for file in self.input or ():
            if not Path(file).is_file():
                yield f'--input: there is no file {file}'


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
    comments = dict(re.findall(r'^    (\w+): .*?  # (.*)$', inspect.getsource(cls), re.M))
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False, usage='%(prog)s [--key=value ...]')
    for field in fields(cls):
        default = '' if field.default in (None, '') else f' [{field.default}]'
        # Everything is let through as text, also a missing value: argparse would stop at the first mistake.
        parser.add_argument(field.name if field.name == positional else f'--{field.name}', default=argparse.SUPPRESS,
                            nargs='*' if field.type is list else '?', metavar=field.name.upper(),
                            help=(comments[field.name] + default).replace('%', '%%'))
    given, unknown = parser.parse_known_args(argv)
    types = {field.name: field.type for field in fields(cls)}
    problems = [f'{word} is not a setting' + near_miss(word.lstrip('-').split('=')[0], types) for word in unknown]
    values = {}
    for name, word in vars(given).items():
        try:
            if types[name] is bool:
                values[name] = {None: True, 'on': True, 'off': False}[word]  # --compile alone means on
            elif word:
                values[name] = word if types[name] is list else types[name](word)
            else:
                problems.append(f'--{name} needs a value: --{name}=...')
        except (ValueError, KeyError):
            kind = {int: 'a whole number', float: 'a number', bool: 'on or off'}[types[name]]
            problems.append(f'--{name}={word} must be {kind}')
    settings = cls(**values)
    problems += settings.problems()
    if problems:
        raise SystemExit('\n  '.join([f'{parser.prog} did nothing, because', *problems]) + '\nSee --help.')
    return settings


# ---------------------------------------------------------------------------------------------------------------------
# Files: nothing half-written is ever taken for the whole


def write_aside(path, data):
    """Write bytes to path so that path is never seen half-written: first beside it, then renamed."""
    aside = path.with_name(path.name + '.part')
    try:
        with open(aside, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise SystemExit(f'could not write {path}: {error.strerror}')


def write_dataset(name, splits, meta):
    """Write data/<name>/<split>.bin for every split (an array of token ids) and, last, meta.json."""
    folder = Path('data') / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f'could not make the folder {folder}: {error.strerror}')
    (folder / 'meta.json').unlink(missing_ok=True)  # while the .bin files change there is no data set
    dtype = np.uint8 if meta['vocab_size'] <= 256 else np.uint16
    for split, tokens in splits.items():
        write_aside(folder / f'{split}.bin', tokens.astype(dtype).tobytes())
    meta = dict(meta, splits={split: len(tokens) for split, tokens in splits.items()})
    write_aside(folder / 'meta.json', json.dumps(meta, indent=1).encode())
    counts = ', '.join(f'{split} {len(tokens):,}' for split, tokens in splits.items())
    print(f'{folder}: {counts} tokens, a vocabulary of {meta["vocab_size"]}')


def sha256_of(path):
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def download(url, path, size=None, sha256=None):
    """Fetch url to path, checked by size (bytes) and sha256 where they are known.

    A broken connection leaves path.part, which the next attempt, or the next run, continues. Ends the program with
    one sentence (SystemExit) where the file cannot be had.
    """
    if path.exists():
        if size is None or path.stat().st_size == size and sha256_of(path) == sha256:
            return
        print(f'{path} is not the file it should be (wrong size or sha256): downloading it again')
    by_hand = f'Download {url} by hand and put it at {path}'
    part = path.with_name(path.name + '.part')
    part.parent.mkdir(parents=True, exist_ok=True)
    reason = 'too many broken connections'
    for attempt in range(5):
        have = part.stat().st_size if part.exists() else 0
        try:
            if size is None or have < size:
                request = urllib.request.Request(url, headers={'Range': f'bytes={have}-'} if have else {})
                with urllib.request.urlopen(request, timeout=30) as response:
                    if response.status != 206:  # the server sends everything, whatever was asked for
                        have = 0
                    total = size or have + int(response.headers.get('Content-Length', 0))
                    with open(part, 'ab' if have else 'wb') as file:
                        while have <= total and (block := response.read(1 << 18)):
                            file.write(block)
                            have += len(block)
                            print(f'\r{path.name}: {have / 1e6:.1f} of {total / 1e6:.1f} MB', end='', flush=True)
                print()
                if have < total:
                    reason = f'the connection broke after {have:,} of {total:,} bytes'
                    continue
        except (OSError, http.client.HTTPException) as error:  # the network's errors, and the disk's
            reason = getattr(error, 'reason', None) or error
            if attempt < 4 and part.exists() and part.stat().st_size > 0:
                time.sleep(attempt)
                continue
            raise SystemExit(f'could not get {url}: {reason}. {by_hand}, then run this again.')
        if size is None or have == size and sha256_of(part) == sha256:
            os.replace(part, path)
            return
        reason = f'what arrived has not the size {size:,} and the sha256 {sha256}'
        part.unlink()  # nothing in it can be trusted: once more from the start
    raise SystemExit(f'could not get {url}: {reason}. {by_hand}, then run this again.')


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
    names = 'zero one two three four five six seven eight nine'.split()
    text = re.sub('[0-9]', lambda digit: f' {names[int(digit[0])]} ', text.lower())
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
    files = [file for file in root.rglob('*.py') if not left_out & set(file.relative_to(root).parts)]
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


TEXT8 = dict(url='http://mattmahoney.net/dc/text8.zip', size=31344016,
             sha256='a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232')


def prepare_text8():
    """The first 100 million characters of a cleaned English Wikipedia, the usual benchmark of character models."""
    archive = Path('data/text8/text8.zip')
    download(**TEXT8, path=archive)
    with zipfile.ZipFile(archive) as file:
        text = file.read('text8').decode('ascii')
    characters = ' abcdefghijklmnopqrstuvwxyz'
    write_dataset('text8', split_90_5_5(encode_text(text, characters)), text_meta(text, characters, TEXT8['url']))


def prepare_input(settings):
    texts = []
    for file in settings.input:
        try:
            texts.append(Path(file).read_bytes().decode('utf-8-sig'))  # bytes: line ends stay what they are
        except UnicodeDecodeError as error:
            raise SystemExit(f'{file} is not UTF-8 (byte {error.start} is {error.object[error.start]:#04x}): save it as UTF-8')
        except OSError as error:
            raise SystemExit(f'could not read {file}: {error.strerror}')
    text = ''.join(texts)
    characters = ' abcdefghijklmnopqrstuvwxyz' if settings.alphabet == 'text8' else ''.join(sorted(set(text)))
    if settings.alphabet == 'text8':
        text = text8_alphabet(text)
    if len(text) < 1000:
        raise SystemExit(f'{", ".join(settings.input)}: {len(text)} characters are too few to train on; give at least 1,000')
    if len(characters) > 65536:
        raise SystemExit(f'{len(characters):,} different characters do not fit into 16 bits; try --alphabet=text8')
    write_dataset(settings.name, split_90_5_5(encode_text(text, characters)),
                  text_meta(text, characters, ', '.join(Path(file).name for file in settings.input)))


DATASETS = dict(stdlib=prepare_stdlib, text8=prepare_text8)


def main(argv=None):
    settings = read_settings(Settings, __doc__, argv, positional='dataset')
    if settings.input:
        prepare_input(settings)
    else:
        DATASETS[settings.dataset or 'stdlib']()


if __name__ == '__main__':
    main()
