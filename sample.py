"""
Let a trained model continue a prompt.

    python sample.py                                              the newest run, a fresh page
    python sample.py --run=stdlib-on --prompt="def main("         continue this
    python sample.py --temperature=0                              always the likeliest character
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from prepare_data import decode_text, encode_text, read_settings, write_aside


@dataclass
class Settings:
    run: str = ''  # a folder under out/; the newest if left open
    prompt: str = ''  # what to continue; a line break if left open
    num_tokens: int = 500  # how many to generate
    temperature: float = 0.8  # below 1 safer, above 1 wilder, 0 always the likeliest
    top_k: int = None  # choose among the k likeliest only; among all if left open
    seed: int = 1337  # another seed, another sample
    out: str = ''  # a file to write the text to as well
    device: str = 'cpu'  # cpu, cuda or mps; a small model that makes one token at a time is at home on the CPU

    def problems(self):
        for name, least in dict(num_tokens=1, temperature=0, top_k=1, seed=0).items():
            if getattr(self, name) is not None and not least <= getattr(self, name) < float('inf'):
                yield f'--{name}={getattr(self, name)} must be at least {least}'
        if self.device not in ('cpu', 'cuda', 'mps'):
            yield f'--device={self.device} is not one of cpu, cuda, mps'
        if self.run and not (Path('out') / self.run / 'best.pt').exists():
            yield f'--run={self.run}: there is no out/{self.run}/best.pt; the runs here: {", ".join(runs()) or "none yet"}'
        if not self.run and not runs():
            yield 'there is no run in out/ yet: train one with python train.py'
        if self.out and not Path(self.out).absolute().parent.is_dir():
            yield f'--out={self.out}: there is no folder {Path(self.out).parent}'


def runs():
    """The names of all runs that have a checkpoint, the newest first."""
    found = sorted(Path('out').glob('*/best.pt'), key=lambda file: file.stat().st_mtime, reverse=True)
    return [file.parent.name for file in found]


if __name__ == '__main__':
    settings = read_settings(Settings, __doc__)

import torch

from wavelet_gpt import GPT, GPTConfig


def load(run, device):
    """The model of out/<run>/best.pt, and what its tokens mean."""
    checkpoint = torch.load(Path('out') / run / 'best.pt', map_location=device, weights_only=True)
    model = GPT(GPTConfig(**checkpoint['config'])).to(device)
    model.load_state_dict(checkpoint['model'])
    return model.eval(), checkpoint['meta'], checkpoint['step']


def main(settings):
    run = settings.run or runs()[0]
    model, meta, step = load(run, settings.device)
    print(f'out/{run}/best.pt, step {step}', file=sys.stderr)
    characters = meta['characters']
    prompt = settings.prompt or ('\n' if '\n' in characters else ' ' if ' ' in characters else characters[0])
    try:
        idx = torch.from_numpy(encode_text(prompt, characters)).long()[None].to(settings.device)  # (1, T0)
    except ValueError as error:
        raise SystemExit(f'--prompt: {error}; the model has never seen it')
    if hasattr(sys.stdout, 'reconfigure'):
        sys.stdout.reconfigure(encoding='utf-8')  # whatever the console thinks it is

    torch.manual_seed(settings.seed)
    text = settings.prompt
    print(text, end='', flush=True)
    for token in model.stream(idx, settings.num_tokens, settings.temperature, settings.top_k):
        text += decode_text(token[0].tolist(), characters)
        print(text[-1], end='', flush=True)
    print()
    if settings.out:
        write_aside(Path(settings.out), text.encode())
        print(f'written to {settings.out}', file=sys.stderr)


if __name__ == '__main__':
    try:
        main(settings)
    except KeyboardInterrupt:
        print()
