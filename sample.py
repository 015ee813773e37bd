"""
Let a trained model go on: text is printed, music becomes a .mid, sound a .wav, each
with a picture beside it (.png). A model of labelled data names the likeliest labels.

$ python sample.py                                       # the newest run in out/
$ python sample.py --run=stdlib-on --prompt="def main("  # continue this text
$ python sample.py --run=maestro-on --prompt=mine.mid    # out/maestro-on/sample.mid
$ python sample.py --run=listops-on --prompt="[MAX 2 [MIN 4 7 1 ] 0 ]"
"""

import io
import os
import sys
import warnings
import wave
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from prepare_data import (SYMBOLS, audio_tokens, decode_text, encode_text, listops_answer,
                          music_tokens, progress, read_meta, read_tokens, write_aside)
from wavelet_gpt import GPT, GPTConfig

KINDS = dict(text=(500, ''), music=(1000, '.mid'), audio=(16000, '.wav'))  # tokens, suffix

def decode_notes(tokens):
    """Any event ids 0..387 (see encode_notes) -> notes [(start, end, pitch, velocity)] in s."""
    notes, step, velocity = [], 0, 61  # a step is 10 ms
    sounding = [[] for _ in range(128)]  # by pitch: the notes that have no end yet
    for token in np.asarray(tokens).tolist():
        if token < 128:  # note_on
            notes.append([step, np.inf, token, velocity])
            sounding[token].append(notes[-1])
        elif token < 256:  # note_off: the oldest note of its pitch ends
            if sounding[token - 128]:
                sounding[token - 128].pop(0)[1] = step
        elif token < 356:  # time goes on by 1 to 100 steps
            step += token - 255
        else:  # one of 32 velocities
            velocity = 1 + 4 * (token - 356)

    # a note lasts at least a step; what never ends, ends at the last step
    notes.sort(key=lambda note: (note[0], note[2]))
    return [(start / 100, max(start + 1, min(end, step)) / 100, pitch, velocity)
            for start, end, pitch, velocity in notes]

def write_midi(notes):
    """Notes [(start, end, pitch, velocity)] in seconds -> bytes of a MIDI file, format 0."""
    # a tick is 1 ms; the note_offs of a tick come first, so that a repeated note sounds again
    ons = [(round(1000 * start), 0x90, pitch, velocity) for start, _, pitch, velocity in notes]
    offs = [(max(round(1000 * end), round(1000 * start) + 1), 0x80, pitch, 64)
            for start, end, pitch, _ in notes]
    track, now = b'', 0
    for tick, *message in sorted(offs + ons, key=lambda event: event[0]):
        wait, now = tick - now, tick
        # 7 bits a byte; in all bytes but the last the eighth is set
        delta = [0x80 | wait >> shift & 0x7F for shift in (21, 14, 7)] + [wait & 0x7F]
        track += bytes(delta + message)
    track += b'\0\xFF\x2F\0'  # end of track
    header = b'MThd\0\0\0\6\0\0\0\1\1\xF4MTrk'  # one track, 500 ticks a quarter note of 0.5 s
    return header + len(track).to_bytes(4, 'big') + track

def mu_law_decode(levels):
    """Levels 0..255 (any shape) -> float32 samples from -1 to 0.957; mu-law, mu = 255."""
    companded = np.asarray(levels, np.float32) / 128 - 1
    return np.sign(companded) * (256 ** np.abs(companded) - 1) / 255

def write_wav(samples, rate):
    """Samples (N,), clipped to [-1, 1], at rate Hz -> bytes of a WAV file, 16 bits, mono."""
    whole = np.clip(np.round(np.asarray(samples) * 32768), -32768, 32767)
    data = io.BytesIO()
    with wave.open(data, 'wb') as file:
        file.setparams((1, 2, rate, 0, 'NONE', None))  # 1 channel, 2 bytes a sample
        file.writeframes(whole.astype('<i2').tobytes())
    return data.getvalue()

def draw_piano_roll(figure, notes):
    """Notes [(start, end, pitch, velocity)]: seconds to the right, pitch upwards."""
    start, end, pitch, velocity = np.array(notes, float).reshape(-1, 4).T  # (N,) each
    axes = figure.add_subplot()
    look = dict(array=velocity, cmap='viridis_r', clim=(0, 127))
    lines = axes.hlines(pitch, start, end, linewidth=3, **look)
    axes.vlines(start, pitch - 0.7, pitch + 0.7, **look)  # so that a repeated note is seen
    figure.colorbar(lines, label='velocity', pad=0.01)
    axes.set_yticks(range(0, 128, 12), [f'C{octave}' for octave in range(-1, 10)])
    axes.grid(axis='y', color='0.85')
    axes.set(xlim=(0, max(end, default=1)), xlabel='time (s)', ylabel='pitch',
             ylim=(min(pitch, default=60) - 3, max(pitch, default=60) + 3))

def draw_sound(figure, samples, rate):
    """Samples (N,) at rate Hz: the waveform above, its spectrogram below."""
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    above.plot(np.arange(len(samples)) / rate, samples, linewidth=0.6)
    *_, image = below.specgram(samples, NFFT=1024, Fs=rate, noverlap=768, mode='magnitude',
                               cmap='magma', vmin=-100, vmax=-20)
    # digital silence is minus infinity dB and has no colour: the ground is black
    above.set(ylim=(-1, 1), ylabel='amplitude', xlim=(0, len(samples) / rate))
    below.set(facecolor='black', xlabel='time (s)', ylabel='frequency (Hz)')
    figure.colorbar(image, ax=below, label='level (dB)', pad=0.01)

def save_picture(path, draw):
    """Write what draw(figure) draws as a PNG file; a sentence where it cannot be drawn."""
    os.environ['MPLBACKEND'] = 'agg'  # a notebook's own may be missing here
    try:
        from matplotlib import figure, style
        data = io.BytesIO()
        # the default style, whatever matplotlibrc says; log axes in plain numbers up to 10^5
        plain = ['default', {'axes.formatter.min_exponent': 5}]
        with style.context(plain), warnings.catch_warnings(action='ignore'):
            page = figure.Figure(figsize=(8, 4.5), layout='constrained')
            draw(page)
            page.savefig(data, format='png', dpi=120)
        write_aside(path, data.getvalue())
    except (Exception, SystemExit) as error:  # a picture never ends a run
        print(f'{path} is not drawn: {error}', file=sys.stderr)

def write_sample(path, tokens, meta):
    """Write tokens as the text, the music or the sound that they are; draw the latter two."""
    if meta['modality'] == 'text':
        write_aside(path, decode_text(tokens, meta['characters']).encode())
    elif meta['modality'] == 'music':
        notes = decode_notes(tokens)
        write_aside(path, write_midi(notes))
        save_picture(path.with_suffix('.png'), lambda figure: draw_piano_roll(figure, notes))
    else:
        samples, rate = mu_law_decode(tokens), meta['sample_rate']
        write_aside(path, write_wav(samples, rate))
        save_picture(path.with_suffix('.png'), lambda figure: draw_sound(figure, samples, rate))

def load_checkpoint(path):
    """What train.py wrote to path: (checkpoint, its model on the CPU)."""
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)  # runs no code
        model = GPT(GPTConfig(**checkpoint['config']))
        model.load_state_dict(checkpoint['model'])
    except Exception as error:
        # the first sentence only: PyTorch goes on with how to run the code
        raise SystemExit(f'{path} holds no model: {str(error).split(". ")[0][:200]!r}')
    return checkpoint, model

def prompt_tokens(prompt, checkpoint):
    """Tokens of a text, or of the file that prompt names; else a line end, velocity 61, silence."""
    meta = checkpoint['meta']
    if meta['modality'] == 'text':
        characters = meta['characters']
        beginning = [c for c in '\n\r ' + characters if c in characters][0]
        return encode_text(prompt or beginning, characters).tolist()
    encode, beginning = dict(music=(music_tokens, 371), audio=(audio_tokens, 128))[meta['modality']]
    tokens = encode(Path(prompt).read_bytes()).tolist() if prompt else [beginning]
    if not tokens:
        raise ValueError('there is nothing in it to go on from')
    return tokens

def labelled_examples(prompt, checkpoint):
    """(tokens, right label) of the prompt, or of five of the last split; ValueError for no list."""
    meta, T = checkpoint['meta'], checkpoint['config']['block_size']
    if prompt and meta['modality'] == 'listops':
        words = prompt.split()
        if len(words) > T or set(words) - set(SYMBOLS):
            raise ValueError(f'a list is at most {T} of {" ".join(SYMBOLS)} with blanks between')
        tokens = [SYMBOLS.index(word) for word in words]
        return [(tokens, listops_answer(tokens))]
    if prompt and meta['modality'] == 'bytes':
        return [(list(prompt.encode()[:T]), 'not known')]
    if prompt:
        raise ValueError(f'a model of {meta["modality"]} takes none')
    dataset, first = checkpoint['settings']['dataset'], meta['vocab_size'] - len(meta['labels'])
    rows = read_tokens(dataset, [*meta['splits']][-1], read_meta(dataset))[:5].astype(int)  # (5, W)
    ends = (rows >= first).argmax(axis=1)  # where the label is
    return [(row[:end], meta['labels'][row[end] - first]) for row, end in zip(rows, ends)]

@torch.no_grad()
def print_labels(model, examples, meta):
    """The three likeliest labels of an example, and the right one."""
    labels = meta['labels']
    for tokens, right in examples:
        idx = torch.tensor(tokens, device=model.lm_head.weight.device)[None]  # (1, T)
        logits = model(idx)[0][0, -1, -len(labels):]  # (number of labels,), the last ids
        chances, best = logits.softmax(dim=0).topk(min(3, len(labels)))
        guesses = [f'{labels[n]} {chance:.1%}' for n, chance in zip(best, chances.tolist())]
        shown = f'{len(tokens)} {meta["modality"]}'
        if meta['modality'] == 'listops':
            shown = ' '.join(SYMBOLS[token] for token in tokens)
        elif meta['modality'] == 'bytes':
            shown = ascii(bytes(map(int, tokens[:60])).decode(errors='replace'))
        print(f'{shown} -> {", ".join(guesses)} (right: {right})')

def main(argv=None):
    runs = [p.parent.name for p in sorted(Path('out').glob('*/best.pt'), key=os.path.getmtime)]
    devices = [name for name in ('cpu', 'cuda', 'mps') if getattr(torch, name).is_available()]
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--run', type=lambda path: Path(path).name, help='a folder in out/ [the newest]')
    add('--prompt', default='', help='to continue: a text, or a .mid or .wav file')
    add('--num_tokens', type=int, help='[text 500, music 1000, sound 16000: 1 s]')
    add('--temperature', type=float, default=0.8, help='0: the likeliest [0.8]')
    add('--top_k', type=int, help='choose among the k likeliest only [all]')
    add('--seed', type=int, default=1337, help='another seed, another sample')
    add('--out', type=Path, help='a file [text: none, else out/<run>/sample.*]')
    add('--device', choices=devices, default='cpu', help='where to compute [cpu]')
    args = parser.parse_args(argv)
    for name, least in ('num_tokens', 1), ('top_k', 1), ('temperature', 0):
        value = getattr(args, name)
        if value is not None and not value >= least:
            parser.error(f'--{name}={value} must be at least {least}')
    if hasattr(sys.stdout, 'reconfigure'):
        sys.stdout.reconfigure(encoding='utf-8')  # whatever the console is

    # the run, and the prompt
    if not runs:
        raise SystemExit('there is no run in out/ yet: python train.py')
    folder = Path('out') / (args.run or runs[-1])
    checkpoint, model = load_checkpoint(folder / 'best.pt')
    model.eval().to(args.device)
    meta, prompt = checkpoint['meta'], args.prompt
    if 'labels' not in meta and meta['modality'] not in KINDS:
        raise SystemExit(f'{folder}: modality {meta["modality"]} is none of {", ".join(KINDS)}')
    warnings.formatwarning = lambda warning, *_: f'warning: {warning}\n'
    read = labelled_examples if 'labels' in meta else prompt_tokens
    try:
        given = read(prompt, checkpoint)
    except (OSError, ValueError) as error:
        raise SystemExit(f'--prompt={prompt}: {error}')
    if 'labels' in meta:
        return print_labels(model, given, meta)
    text = meta['modality'] == 'text'
    count, suffix = KINDS[meta['modality']]
    out = args.out or (None if text else folder / f'sample{suffix}')
    if out and (out.exists() and not out.is_file() or not out.parent.is_dir()
                or not out.name.endswith(suffix)):
        raise SystemExit(f'--out={out}: name a file (*{suffix}) in a folder that is there')

    # what would steer a terminal is not printed; \r\n is one line end
    visible = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)], '\ufffd')
    visible[13] = '' if '\n' in meta.get('characters', '') else '\n'
    torch.manual_seed(args.seed)
    idx = torch.tensor([given], device=args.device)  # (1, T)
    made = []
    with suppress(KeyboardInterrupt, BrokenPipeError):  # what there is, is written
        print((prompt if text else '').translate(visible), end='', flush=True)
        for token in model.stream(idx, args.num_tokens or count, args.temperature, args.top_k):
            made.append(token.item())
            if text:
                print(meta['characters'][made[-1]].translate(visible), end='', flush=True)
            else:
                progress(f'{len(made)} tokens')
    if out:
        write_sample(out, given + made if prompt else made, meta)
    print(f'\n{folder}: {len(made)} tokens', f'in {out}' if out else '', file=sys.stderr)

if __name__ == '__main__':
    try:
        main()
        sys.stdout.flush()
    except (KeyboardInterrupt, BrokenPipeError):  # or | head has read enough
        sys.stdout = open(os.devnull, 'w')
        raise SystemExit('stopped')
