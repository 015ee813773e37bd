"""
Let a trained model continue a prompt: text to read, a .mid or a .wav to hear, each with a picture where it has none itself.

    python sample.py                                              the newest run, a fresh page
    python sample.py --run=stdlib-on --prompt="def main("         continue this
    python sample.py --run=maestro-on --prompt=mine.mid           continue this piece: out/maestro-on/sample.mid and .png
    python sample.py --run=youtubemix-on --num_tokens=32000       two seconds of sound: out/youtubemix-on/sample.wav and .png
    python sample.py --temperature=0                              always the likeliest token
    python sample.py --run=listops-64-on                          examples of the test split, their likeliest labels, the right one
"""

import io
import os
import pickle
import re
import struct
import sys
import time
import wave
import zipfile
from collections import defaultdict, deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prepare_data import (FOLDER_NAME, SYMBOLS, audio_tokens, check_meta, decode_text, encode_text, first_label,
                          listops_answer, music_tokens, near_miss, read_meta, read_settings, read_tokens, sorted_notes,
                          write_aside)


@dataclass
class Settings:
    run: str = ''  # a folder under out/; the newest if left open
    prompt: str = ''  # what to continue: text, or a .mid or .wav file; a line break or silence if left open
    num_tokens: int = None  # how many to generate; 500 characters, 1,000 events or 16,000 samples (1 s) if left open
    temperature: float = 0.8  # below 1 safer, above 1 wilder, 0 always the likeliest
    top_k: int = None  # choose among the k likeliest only; among all if left open
    seed: int = 1337  # another seed, another sample
    out: str = ''  # a file for the result; text is only printed, music and sound go to out/<run>/sample.* if left open
    device: str = 'cpu'  # cpu, cuda or mps; a small model that makes one token at a time is at home on the CPU

    def problems(self):
        """Every setting that cannot be, one sentence each."""
        for name, least in dict(num_tokens=1, temperature=0, top_k=1, seed=0).items():
            if getattr(self, name) is not None and not least <= getattr(self, name) <= 10 ** 9:
                yield f'--{name}={getattr(self, name)} must be at least {least} and at most 10^9'
        if 0 < self.temperature < 0.001:
            yield f'--temperature={self.temperature} is too near to 0 to divide by: use 0, or at least 0.001'
        if self.device not in ('cpu', 'cuda', 'mps'):
            yield f'--device={self.device} is not one of cpu, cuda, mps'
        if self.run and self.run not in runs():
            yield (f'--run={self.run}: there is no out/{self.run}/best.pt{near_miss(self.run, runs())}; the runs here: '
                   f'{", ".join(runs()) or "none yet"}')
        if not self.run and not runs():
            yield 'there is no run in out/ yet: train one with python train.py'
        if self.out and not Path(self.out).absolute().parent.is_dir():
            yield f'--out={self.out}: there is no folder {Path(self.out).parent}'
        if os.path.isdir(self.out):
            yield f'--out={self.out} is a folder: name a file in it'


def runs():
    """The names of all runs that have a checkpoint, the newest first."""
    found = sorted(Path('out').glob('*/best.pt'), key=lambda file: file.stat().st_mtime, reverse=True)
    return [file.parent.name for file in found]


if __name__ == '__main__':
    settings = read_settings(Settings, __doc__)

import torch

from wavelet_gpt import GPT, GPTConfig

# ---------------------------------------------------------------------------------------------------------------------
# Music: events to notes, notes to a file and a picture


def decode_notes(tokens):
    """Event ids 0..387 (T,), in whatever order -> notes [(start, end, pitch, velocity)] in seconds, by (start, pitch).

    A note_off ends the oldest sounding note of its pitch and is ignored where there is none. What never ends, ends at
    the last step; a note that ends at the step of its onset lasts one step. Bin b is velocity 1 + 4 b; before the first
    velocity event it is 61 (bin 15). Undoes encode_notes but for its rounding and for what the vocabulary
    cannot say: of notes of one pitch that overlap, the one that starts first ends first. ValueError for other ids.
    """
    notes, sounding, step, velocity = [], defaultdict(deque), 0, 61
    for token in np.asarray(tokens).tolist():
        if not 0 <= token <= 387:
            raise ValueError(f'event id {token} is not in the vocabulary 0..387')
        if token < 128:
            notes.append([step, None, token, velocity])
            sounding[token].append(notes[-1])
        elif token < 256:
            if sounding[token - 128]:
                sounding[token - 128].popleft()[1] = step
        elif token < 356:
            step += token - 255
        else:
            velocity = 1 + 4 * (token - 356)
    for note in notes:
        note[1] = max(note[0] + 1, step if note[1] is None else note[1])
    return sorted(((start / 100, end / 100, pitch, velocity) for start, end, pitch, velocity in notes),
                  key=lambda note: (note[0], note[2]))


def write_midi(notes):
    """Notes [(start, end, pitch, velocity)] in seconds -> bytes of a Standard MIDI File, format 0, piano.

    A tick is 1 ms (a quarter note of 0.5 s has 500), so steps of 10 ms are exact; a note left with no length gets
    one tick. ValueError for a note that ends after 24 hours, which read_midi would refuse.
    """
    events = []
    for start, end, pitch, velocity in sorted_notes(notes, 24 * 3600):
        first = round(1000 * start)
        last = max(first + 1, round(1000 * end))
        events += [(first, bytes([0x90, pitch, velocity])), (last, bytes([0x80, pitch, 64]))]
    track, now = bytearray(b'\x00\xFF\x51\x03' + (500_000).to_bytes(3, 'big') + b'\x00\xC0\x00'), 0  # tempo, piano
    for tick, message in sorted(events, key=lambda event: event[0]):    # stable: note_off first, as in encode_notes
        delta, now = tick - now, tick
        track += bytes(0x80 | delta >> shift & 0x7F for shift in (21, 14, 7) if delta >> shift)
        track += bytes([delta & 0x7F]) + message
    track += b'\x00\xFF\x2F\x00'                   # end of track
    return struct.pack('>4sIHHH4sI', b'MThd', 6, 0, 1, 500, b'MTrk', len(track)) + bytes(track)


def draw_piano_roll(notes, path):
    """Draw notes [(start, end, pitch, velocity)] as a PNG: time in seconds to the right, pitch up, louder is darker."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure

    start, end, pitch, velocity = np.array(list(notes), dtype=float).reshape(-1, 4).T       # each (N,)
    low = min(pitch, default=48) // 12 * 12
    high = max(pitch, default=72) // 12 * 12 + 12
    octaves = np.arange(low, high + 1, 12, dtype=int)
    figure = Figure(figsize=(12, 4.5), layout='constrained')
    axes = FigureCanvasAgg(figure).figure.add_subplot()
    corners = np.stack([start, pitch - 0.5, start, pitch + 0.5, end, pitch + 0.5, end, pitch - 0.5], axis=1)  # (N, 8)
    colours = [(0.05, 0.25, 0.55, alpha) for alpha in 0.1 + velocity / 200]
    axes.add_collection(PolyCollection(corners.reshape(-1, 4, 2), facecolors=colours))
    axes.vlines(start, pitch - 0.5, pitch + 0.5, colors=colours, linewidth=1)   # onsets: a repeated note must be seen
    axes.set(xlim=(0, max([1, *end])), ylim=(low - 1, high + 1), xlabel='time (s)')
    axes.set_yticks(octaves, [f'C{key // 12 - 1}' for key in octaves])
    axes.grid(axis='y', color='0.85', linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[['left', 'right', 'top']].set_visible(False)
    save_figure(figure, path)


def save_figure(figure, path):
    """Write a figure as a PNG, whole or not at all."""
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120)
    write_aside(path, picture.getvalue())


# ---------------------------------------------------------------------------------------------------------------------
# Sound: levels to samples, samples to a file and a picture


def mu_law_decode(levels):
    """Decode 8-bit mu-law levels 0..255 (integers of any shape): float32 samples from -1 to 0.957."""
    levels = np.asarray(levels)
    if levels.size and not (levels.min() >= 0 and levels.max() <= 255):
        raise ValueError(f'mu-law levels must be 0..255, these reach from {levels.min()} to {levels.max()}')
    companded = levels.astype(np.float32) / 128 - 1
    return np.sign(companded) * (np.float32(256) ** np.abs(companded) - 1) / 255


def write_wav(samples, rate):
    """The bytes of a 16-bit mono PCM WAV file of samples (N,) in [-1, 1] (clipped to it); the inverse of read_wav."""
    samples = np.asarray(samples, np.float32)
    if np.isnan(samples).any() or not 1000 <= rate <= 1_000_000:
        raise ValueError(f'cannot write a WAV file at {rate} Hz with {np.isnan(samples).sum():,} NaN samples: '
                         'the rate must be 1,000..1,000,000 and every sample a number')
    buffer = io.BytesIO()
    with wave.open(buffer, 'wb') as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.clip(np.round(samples * 32768), -32768, 32767).astype(np.int16))
    return buffer.getvalue()


def draw_audio(samples, rate, path):
    """Draw samples (N,) at rate Hz, N >= 1, into the picture file path: waveform above, spectrogram (dB) below."""
    from matplotlib.figure import Figure  # without pyplot: needs no display and leaves no figure open
    samples = np.asarray(samples, np.float32)
    if len(samples) == 0:
        raise ValueError('there is no sound to draw: samples is empty')
    figure = Figure(figsize=(10, 5), layout='constrained')
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    starts = np.linspace(0, len(samples), min(len(samples), 1200), endpoint=False).astype(int)  # of the columns drawn

    low, high = np.minimum.reduceat(samples, starts), np.maximum.reduceat(samples, starts)
    above.plot(np.repeat(starts / rate, 2), np.stack([low, high], axis=1).ravel(), linewidth=0.6,
               marker='.' if len(samples) < 100 else None)
    above.set(ylim=(-1, 1), ylabel='amplitude')

    window = 2048
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(samples, window // 2), window)[starts]  # (columns, window)
    magnitude = np.abs(np.fft.rfft(frames * np.hanning(window))) / (window / 4)  # a full-scale sine is 1, 0 dB
    decibels = 20 * np.log10(magnitude + 1e-6)[:, 1:]  # without 0 Hz, which a logarithmic axis cannot show
    edges = (np.arange(decibels.shape[1] + 1) + 0.5) * rate / window
    loudest = max(decibels.max(), -40)  # so that silence stays black
    picture = below.pcolormesh(np.append(starts, len(samples)) / rate, edges, decibels.T, cmap='magma',
                               vmin=loudest - 80, vmax=loudest)
    ticks = [100, 200, 500, 1000, 2000, 5000]
    below.set(yscale='log', yticks=ticks, yticklabels=ticks, ylim=(50, min(8000, rate / 2)), ylabel='frequency (Hz)',
              xlim=(0, len(samples) / rate), xlabel='time (s)')
    below.minorticks_off()
    figure.colorbar(picture, ax=below, label='level (dB)')
    save_figure(figure, path)


# ---------------------------------------------------------------------------------------------------------------------
# Sampling

SUFFIX = dict(text='', music='.mid', audio='.wav')


def load(path):
    """The checkpoint at path, checked, and its model on the CPU. SystemExit with one sentence where it is no such thing.

    It may come from a stranger. weights_only refuses all but numbers, text and containers, so that no code can run, and
    no model is built that is larger than the file.
    """
    try:
        with zipfile.ZipFile(path) as file:  # as torch.save writes it; torch.load would take a flipped bit for a weight
            if any(part.compress_type for part in file.infolist()) or file.testzip():
                raise ValueError('a part of it is damaged')
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
        config, meta = GPTConfig(**checkpoint['config']), checkpoint['meta']
        check_meta(meta)
        if type(checkpoint['step']) is not int:
            raise ValueError('its step is not a number')
        parameters = config.n_embd * (config.vocab_size + config.block_size + 12 * config.n_embd * config.n_layer)
        if config.wavelet == 'learnable':
            parameters += (config.n_layer - 1) * config.kernel_sizes().sum().item()  # f = 1 is none; LayerNorms are more
        if config.vocab_size != meta['vocab_size'] or 4 * parameters > path.stat().st_size:  # at least, of 4 bytes each
            raise ValueError('its config describes another model than it holds')
        model = GPT(config)
        model.load_state_dict(checkpoint['model'])
        if not all(parameter.isfinite().all() for parameter in model.parameters()):
            raise ValueError('its weights are not numbers')
    except pickle.UnpicklingError:
        raise SystemExit(f'{path} is refused: it is damaged, or made to run code when it is loaded')
    except Exception as error:  # hostile or damaged bytes can end in any
        what = printable((str(error) or repr(error)).splitlines()[0][:200])
        raise SystemExit(f'{path} holds no model that this program can load: {what}')
    return checkpoint, model


def printable(text):
    """text without what could steer a terminal: a stranger may have written it. Spaces and joiners of all languages stay;
    a carriage return goes, since the line feed behind it, as on Windows, ends the line alone."""
    return ''.join(c if c.isprintable() or c in '\n\t\u200c\u200d' or c > '\x9f' and c.isspace() else '\ufffd'
                   for c in text.replace('\r', ''))


def prompt_tokens(prompt, meta):
    """The tokens to continue: of the text, or of the .mid or .wav file that prompt names; the least there is if ''."""
    if meta['modality'] == 'text':
        characters = meta['characters']
        return encode_text(prompt or ('\n' if '\n' in characters else ' ' if ' ' in characters else characters[0]), characters)
    if not prompt:
        return np.array([356 + 16] if meta['modality'] == 'music' else [128])  # a middling velocity; silence
    try:
        data = Path(prompt).read_bytes()
    except OSError as error:
        raise SystemExit(f'--prompt={prompt}: {error.strerror}; this run continues a {SUFFIX[meta["modality"]]} file')
    return (music_tokens if meta['modality'] == 'music' else audio_tokens)(data)


def write_result(path, tokens, meta):
    """Write tokens (N,) as what they are: a text file, or a .mid or .wav file and beside it a .png."""
    if meta['modality'] == 'text':
        write_aside(path, decode_text(tokens, meta['characters']).encode())
    elif meta['modality'] == 'music':
        notes = decode_notes(tokens)
        write_aside(path, write_midi(notes))
        draw_piano_roll(notes, path.with_suffix('.png'))
    else:
        samples = mu_law_decode(tokens)
        write_aside(path, write_wav(samples, meta['sample_rate']))
        draw_audio(samples, meta['sample_rate'], path.with_suffix('.png'))


def labelled_examples(prompt, checkpoint):
    """[(what is read, its tokens, its right label or None)] of the prompt, or of five examples of the test split."""
    meta, T = checkpoint['meta'], checkpoint['config']['block_size']
    if prompt and meta['modality'] == 'listops':
        words = prompt.replace(']', ' ] ').split()
        wrong = [word for word in words if word not in SYMBOLS]
        if wrong or len(words) > T:
            raise ValueError(f'{wrong[0]!r} is not one of {" ".join(SYMBOLS)}' if wrong else
                             f'it has {len(words)} symbols, and the model reads at most {T}')
        tokens = [SYMBOLS.index(word) for word in words]
        return [(' '.join(words), tokens, str(listops_answer(tokens)))]
    if prompt and meta['modality'] == 'bytes':
        return [(ascii(prompt), list(prompt.encode(errors='replace')[:T]), None)]  # cut as the data are
    if prompt:
        raise ValueError('pictures cannot be typed: leave --prompt open for examples of the test split')
    try:
        name = re.fullmatch(FOLDER_NAME, dict(checkpoint['settings'])['dataset'])[0]
    except (KeyError, TypeError, ValueError):  # a stranger may have written it
        raise SystemExit('the checkpoint does not say which data it learned: give a --prompt')
    if read_meta(name) != meta:
        raise SystemExit(f'data/{name} is not what this run learned: give a --prompt, or prepare {name} as it was')
    show = dict(listops=lambda tokens: ' '.join(SYMBOLS[token] for token in tokens), pixels=lambda tokens: 'a picture',
                bytes=lambda tokens: ascii(bytes(tokens[:80].astype(np.uint8)).decode(errors='replace')))[meta['modality']]
    ends = np.cumsum(meta['pieces']['test'][:5])
    pieces = np.split(read_tokens(name, 'test', meta)[:ends[-1]], ends[:-1])
    return [(show(piece[:-1]), piece[:-1].tolist(), meta['labels'][piece[-1] - first_label(meta)]) for piece in pieces]


@torch.no_grad()
def print_labels(model, checkpoint, prompt):
    """The three likeliest labels of the prompt, or of examples of the test split, and the right one where it is known."""
    labels = checkpoint['meta']['labels']
    for shown, tokens, right in labelled_examples(prompt, checkpoint):
        logits = model(torch.tensor([tokens], device=model.lm_head.weight.device))[0][0, -1].float()  # (V,)
        chances, best = logits.softmax(dim=0)[-len(labels):].topk(min(3, len(labels)))
        print(shown, '->', ', '.join(f'{labels[n]} {chance:.1%}' for n, chance in zip(best.tolist(), chances.tolist())),
              f'(right: {right})' if right else '')


def main(settings):
    run = settings.run or runs()[0]
    if settings.device != 'cpu' and not dict(cuda=torch.cuda, mps=torch.backends.mps)[settings.device].is_available():
        raise SystemExit(f'--device={settings.device}: this PyTorch sees no such device here; use --device=cpu')
    checkpoint, model = load(Path('out') / run / 'best.pt')
    model, meta = model.to(settings.device).eval(), checkpoint['meta']
    print(f'out/{run}/best.pt, step {checkpoint["step"]}', file=sys.stderr)
    if 'labels' in meta:
        unused = [name for name in getattr(settings, 'given', ()) if name not in ('run', 'prompt', 'device')]
        if unused:
            raise SystemExit(f'--{unused[0]} is for runs that write text, music or sound, and {run} only names labels: leave it out')
        try:
            return print_labels(model, checkpoint, settings.prompt)
        except ValueError as error:
            raise SystemExit(f'--prompt={settings.prompt}: {error}')
    text, suffix = meta['modality'] == 'text', SUFFIX[meta['modality']]
    path = Path(settings.out) if settings.out else None if text else Path('out') / run / f'sample{suffix}'
    if not text and path.suffix != suffix:
        raise SystemExit(f'--out={path}: the run {run} makes {meta["modality"]}, so the name must end in {suffix}')
    try:
        tokens = prompt_tokens(settings.prompt, meta).tolist()
    except ValueError as error:
        raise SystemExit(f'--prompt={settings.prompt}: {error}')
    if not tokens:
        raise SystemExit(f'--prompt={settings.prompt} holds nothing to continue')
    if text and hasattr(sys.stdout, 'reconfigure'):
        sys.stdout.reconfigure(encoding='utf-8')  # whatever the console thinks it is
    if text:
        print(settings.prompt, end='', flush=True)

    torch.manual_seed(settings.seed)
    count = settings.num_tokens or dict(text=500, music=1000, audio=16000)[meta['modality']]
    idx = torch.tensor([tokens], device=settings.device)  # (1, T0)
    first = 0 if settings.prompt or not text else 1  # a prompt that was not given is not part of the text
    begin, n = time.perf_counter(), 0
    try:
        for n, token in enumerate(model.stream(idx, count, settings.temperature, settings.top_k), 1):
            tokens.append(token.item())
            if text:
                print(printable(decode_text(tokens[-1:], meta['characters'])), end='', flush=True)
            elif n % 100 == 0:
                left = (time.perf_counter() - begin) / n * (count - n)
                print(f'\r{n} of {count} tokens, {left:.0f} s left ', end='', file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print(f'\nstopped after {n} tokens', file=sys.stderr)
    except BrokenPipeError:
        if path:
            print(f'{path} is not written: the reader of the text left before its end', file=sys.stderr)
        raise
    print()
    print(f'{n / (time.perf_counter() - begin):,.0f} tokens/s', file=sys.stderr)
    if path:
        try:
            write_result(path, tokens[first:], meta)
        except (OSError, ValueError) as error:  # no space; music of more than a day
            raise SystemExit(f'could not write {path} and its picture: {getattr(error, "strerror", error)}')
        except ImportError as error:
            raise SystemExit(f'{path} is written, and its picture is not: {error}: pip install -r requirements.txt')
        print(f'written to {path}', file=sys.stderr)


if __name__ == '__main__':
    try:
        main(settings)
    except KeyboardInterrupt:
        raise SystemExit('\nstopped')
    except BrokenPipeError:  # the reader of what is printed, head or less, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
