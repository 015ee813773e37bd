"""
WaveletGPT in one file: a GPT in which every next-token prediction sees several time scales, at every layer after the first.

Between every two decoder blocks, half of the embedding coordinates are replaced by causal moving averages over the
last 2, 4, 8 ... time steps (the approximation coefficients of a Haar wavelet, taken at every step). The other half
stays as it is. This adds no parameter. After Prateek Verma, "WaveletGPT: Wavelet Inspired LLMs", arXiv 2409.12924,
whose authors published no code: what follows is written from the description of the method.

Read in this order: kernel_sizes (which coordinate sees how far), causal_haar (the averages; _ShiftedAdds below it does
them), GPT.forward (where they go). Everything else is the GPT-2 decoder as nanoGPT writes it, with nanoGPT's parameter
names: with wavelet='off' this file loads a nanoGPT state_dict and gives its logits.
`python wavelet_gpt.py` draws the lesson, from these very functions: see the end of the file.

    letter       meaning                                                     in the paper
    B            batch: how many sequences at once
    T, t         time steps in the sequence at hand, one of them             time step
    block_size   the longest T, the context length                           context length
    C, i         embedding coordinates (n_embd), one of them                 embedding dimension E, coordinate i
    nh, hs       attention heads, coordinates of a head; nh * hs = C
    V            vocabulary size
    f(i)         kernel size: how many steps coordinate i averages           f(i)
    level        log2 f(i): level 1 averages 2 steps, level 9 averages 512   levels I to IX
    x_n(t, i)    x, the stream of vectors that the blocks add to, averaged   signal n at time t

Left out: rotary positions, tokenisers, weight conversion from GPT-2, anything that only matters at a billion parameters.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

# ---------------------------------------------------------------------------------------------------------------------
# The wavelet: which coordinate averages over how many steps, and the averages


def kernel_sizes(n_embd, block_size, fraction=0.5, min_level=1, max_level=None, halving=False):
    """The mapping f(i): how many time steps coordinate i averages over. LongTensor (n_embd,).

    The first coordinates are left alone (f = 1). The last round(fraction * n_embd) are shared out evenly, in order,
    among the levels min_level .. max_level; level l averages 2^l steps. max_level=None is the longest window that
    fits, floor(log2(block_size)). For n_embd=128, block_size=512: 64 coordinates with f = 1, 8 with 2, then 7 each
    with 4, 8 ... 512. With fewer coordinates than levels some levels get none, the longest among them. The paper's
    printed formula could not be read; this form is ours, from its description.

    halving shares them out otherwise, and is not the paper's: half of them to the shortest window, half of the rest to
    the next, and so on; the last one gets the longest. For n_embd=128: 64 with f = 1, 32 with 2, 16 with 4 ... 1 with 64
    and 1 with 128.

    Raises ValueError for a fraction outside 0..1 or, where anything is averaged, for levels outside
    1..floor(log2(block_size)).
    """
    longest = block_size.bit_length() - 1  # floor(log2), exact for any int
    if max_level is None:
        max_level = longest
    if not 0 <= fraction <= 1:
        raise ValueError(f'wavelet_fraction={fraction} is not between 0 and 1')
    first = n_embd - round(fraction * n_embd)  # the first coordinate that is averaged
    if first == n_embd:
        return torch.ones(n_embd, dtype=torch.long)
    if longest < 1:
        raise ValueError(f'block_size={block_size} holds no window of 2 steps: use block_size >= 2, or wavelet=off')
    if not 1 <= min_level <= max_level <= longest:
        raise ValueError(f'wavelet levels {min_level}..{max_level} do not fit: need 1 <= wavelet_min_level <= '
                         f'wavelet_max_level <= {longest}, since block_size={block_size} holds 2^{longest} steps')
    i = torch.arange(first, n_embd)
    if halving:  # min_level + floor(log2((n_embd - first) / (n_embd - i))); the longest window gets what is left over
        level = (min_level + ((n_embd - first) // (n_embd - i)).double().log2().long()).clamp(max=max_level)
    else:  # n levels over n_embd - first coordinates: min_level + floor((i - first) * n / (n_embd - first))
        level = min_level + (i - first) * (max_level - min_level + 1) // (n_embd - first)
    return torch.cat((torch.ones(first, dtype=torch.long), 2 ** level))


def causal_haar(x, kernel_size, shifts=None):
    """Average coordinate i of x over its last kernel_size[i] time steps, with zeros before the first step.

        x_n(t, i) = 1/f(i) * sum of x(m, i) for m = t - f(i) + 1 .. t
        x_n[:, t, i] = x[:, max(0, t - f + 1):t + 1, i].sum(1) / f

    That is the Haar approximation coefficient of level log2 f(i), divided by sqrt f(i), at every t and from the past only.

    x            (B, T, C) floating point, any T; sums in float32 at least, returned in the dtype of x
    kernel_size  (C,) integers, positive powers of two in any order, on the device of x
    shifts       if given, haar_shifts(kernel_size.tolist()) of an ascending kernel_size, which is then neither read nor checked
    returns      (B, T, C)
    Raises ValueError for other shapes, other numbers, or an x that is not floating point.
    """
    kernel_size = torch.as_tensor(kernel_size, device=x.device)
    if not x.is_floating_point() or kernel_size.is_floating_point():
        raise ValueError(f'causal_haar averages floating point numbers over whole numbers of steps, and x is {x.dtype}, '
                         f'kernel_size {kernel_size.dtype}: use x.float() and kernel_size.long()')
    if x.dim() < 2 or kernel_size.shape != x.shape[-1:]:
        raise ValueError(f'kernel_size has the shape {tuple(kernel_size.shape)} and x {tuple(x.shape)}: '
                         f'need x (B, T, C) and kernel_size (C,)')
    if shifts is None:
        sizes = kernel_size.tolist()
        wrong = [f for f in sizes if f < 1 or f & (f - 1)]
        if wrong:
            raise ValueError(f'kernel_size holds {wrong[0]}: every window must be a positive power of two (1, 2, 4 ...)')
        if sizes != sorted(sizes):
            order = torch.argsort(kernel_size)  # the GPT never comes here: its f(i) ascends
            return causal_haar(x[..., order], kernel_size[order])[..., torch.argsort(order)]
        shifts = haar_shifts(sizes)
    return _ShiftedAdds.apply(x, kernel_size, shifts, False)


def haar_shifts(kernel_size):
    """The shifted adds that an ascending list of kernel sizes needs: a tuple of (shift, first), shift = 1, 2, 4 ...

    first is the first coordinate whose window is longer than shift: its sum has to reach further back. Of [1, 2, 4]:
    ((1, 1), (2, 2)), that is, add at shift 1 from coordinate 1 on, and at shift 2 from coordinate 2 on.
    """
    longest = max(kernel_size, default=1)
    shifts = [2 ** j for j in range(longest.bit_length() - 1)]  # log2(longest) of them
    return tuple((shift, sum(f <= shift for f in kernel_size)) for shift in shifts)


class _ShiftedAdds(torch.autograd.Function):
    """Means over windows that end at t, or with reverse, for the backward, that begin at t; zeros beyond the ends.

    A sum over 2s steps is two sums over s steps, s apart: a(t) <- a(t) + a(t - s) for s = 1, 2, 4 ..., each step for
    those coordinates only whose window is longer than s ("algorithme a trous"); the first s steps stay, since zeros come
    before them. Only additions of values in the window ever reach an output, so causality and locality hold to the last
    bit; a difference of cumulative sums or an FFT computes the same means with a round-off that depends on other time
    steps. The backward is written out: left to autograd, forward and backward take about twice as long.
    """
    generate_vmap_rule = True  # torch.vmap may derive the batched form from what follows

    # forward computes, setup_context keeps what the backward needs, and backward gets the gradient of the output and
    # returns one for each input of forward: only x has one.

    @staticmethod
    def forward(x, kernel_size, shifts, reverse):
        # Divided first: that makes the copy to add in, and loses no bit, f being a power of two. The float32 factor makes
        # the sums float32 where x is bfloat16 or float16.
        a = x * (1.0 / kernel_size.float())
        for shift, first in shifts:
            if shift >= x.size(-2):
                break  # the window already holds everything there is
            if not torch.compiler.is_compiling():
                early, late = a[..., :-shift, first:], a[..., shift:, first:]
                if reverse:
                    early += late.clone()  # cloned, since the views overlap and each must see the other's old values
                else:
                    late += early.clone()
            else:  # the same adds out of place: torch.compile fuses these, and not those above
                moved = F.pad(a, (0, 0, -shift, shift) if reverse else (0, 0, shift, -shift))
                a = torch.where(kernel_size > shift, a + moved, a)
        # Not to() where it would change nothing: torch.compile of 2.11 loses the gradient behind such a to().
        return a if a.dtype == x.dtype else a.to(x.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, ctx.kernel_size, ctx.shifts, ctx.reverse = inputs  # no activation: the operation is linear in x

    @staticmethod
    def backward(ctx, grad):
        # x(s) enters the outputs s .. s + f - 1, so its gradient is the mean of theirs: the same adds, time reversed.
        return _ShiftedAdds.apply(grad, ctx.kernel_size, ctx.shifts, not ctx.reverse), None, None, None


def causal_ema(x, alpha):
    """Exponential moving averages y(t, i) = alpha(i) x(t, i) + (1 - alpha(i)) y(t - 1, i), y = 0 before the first step.

    What the paper compares with. alpha (C,), in 0..1, stands in place of the kernel sizes; alpha = 1 leaves a
    coordinate alone. x (B, T, C) -> (B, T, C). Again by shifted adds: the sum over the last s steps, and (1 - alpha)^s
    times the sum over the s steps before them, make the sum over the last 2s.
    """
    a, shift = x * alpha, 1
    while shift < x.size(-2):
        a = a + (1 - alpha) ** shift * F.pad(a, (0, 0, shift, -shift))
        shift *= 2
    return a.to(x.dtype)


def causal_past(x, kernel_size, shifts=None):
    """Average coordinate i of x over the f(i)/2 steps before the present one; f(i) = 1 leaves it alone.

    Beyond the paper, whose averages hold the present step too: learned kernels came to give it less weight than Haar does
    (assets/results.md). x (B, T, C), kernel_size (C,), shifts = haar_shifts of its halves, at least 1 -> (B, T, C).
    """
    means = causal_haar(x, (kernel_size // 2).clamp(min=1), shifts)
    return torch.where(kernel_size > 1, F.pad(means, (0, 0, 1, -1)), means)  # one step later, or left alone


class LearnableKernels(nn.Module):
    """The learnable variant: each averaged coordinate has a kernel of its own of length f(i), started at Haar's 1/f(i),
    the present step's weight last."""

    def __init__(self, kernel_size):
        super().__init__()
        sizes, counts = kernel_size[kernel_size > 1].unique(return_counts=True)
        self.kernels = nn.ParameterList(torch.full((n, 1, f), 1.0 / f)  # for the n coordinates of each window f
                                        for f, n in zip(sizes.tolist(), counts.tolist()))

    def forward(self, x):
        counts = [len(kernel) for kernel in self.kernels]
        alone, *parts = x.split([x.size(2) - sum(counts), *counts], dim=2)  # f(i) ascends: each window is one part
        done = [alone]
        with torch.autocast(x.device.type, enabled=False):  # else conv1d would round the residual stream to bfloat16
            for kernel, part in zip(self.kernels, parts):
                n, _, f = kernel.size()
                padded = F.pad(part.transpose(1, 2), (f - 1, 0))  # (B, n, f - 1 + T), zeros before the first step
                done.append(F.conv1d(padded, kernel, groups=n).transpose(1, 2))  # (B, T, n)
        return torch.cat(done, dim=2)


# ---------------------------------------------------------------------------------------------------------------------
# The GPT


@dataclass
class GPTConfig:
    """The shape of the model. Raises ValueError with all that cannot be in it, one sentence a line."""
    block_size: int = 256  # T, the longest context
    vocab_size: int = 256  # V
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128  # C
    dropout: float = 0.0
    bias: bool = False  # in the linear layers and LayerNorms, as GPT-2 has
    wavelet: str = 'on'  # on: causal Haar averages between the blocks; learnable, ema, past: its variants; off: plain GPT
    wavelet_fraction: float = 0.5  # of the coordinates, averaged
    wavelet_min_level: int = 1  # shortest window: 2^1 steps (of past: half as many, before the present one)
    wavelet_max_level: int = None  # longest window: 2^this steps (past: half); None: as long as block_size and f(i) allow

    def __post_init__(self):
        problems = [f'{name}={getattr(self, name)} must be between 1 and {most}' for name, most in dict(
            block_size=10 ** 6, vocab_size=10 ** 6, n_layer=1000, n_head=10 ** 6, n_embd=10 ** 6).items()
            if not 1 <= getattr(self, name) <= most]
        sound = not problems
        if sound and self.n_embd % self.n_head:
            problems.append(f'n_embd={self.n_embd} must be a multiple of n_head={self.n_head}: the heads share it equally')
        if not 0 <= self.dropout < 1:
            problems.append(f'dropout={self.dropout} must be at least 0 and less than 1')
        if self.wavelet not in ('on', 'off', 'learnable', 'ema', 'past'):
            problems.append(f'wavelet={self.wavelet!r} is not one of on, off, learnable, ema, past')
        if self.wavelet != 'off' and self.n_layer == 1:
            problems.append(f'n_layer=1 leaves no place between two blocks for wavelet={self.wavelet}: use n_layer >= 2, '
                            'or wavelet=off')
        if sound and self.wavelet != 'off':
            try:
                if self.kernel_sizes().max() == 1 and self.wavelet in ('learnable', 'ema'):
                    problems.append(f'wavelet_fraction={self.wavelet_fraction} leaves no coordinate of n_embd={self.n_embd} to '
                                    f'average: use a larger one, or wavelet=off')
            except ValueError as problem:
                problems.append(str(problem))
        if problems:
            raise ValueError('\n'.join(problems))

    def kernel_sizes(self):
        return kernel_sizes(self.n_embd, self.block_size, self.wavelet_fraction, self.wavelet_min_level,
                            self.wavelet_max_level, halving=self.wavelet == 'past')


def remember(room, new, begin, dim):
    """Write new into room from index begin of dimension dim on, and return all that is there by now."""
    T = new.size(dim)
    room.narrow(dim, begin, T).copy_(new)
    return room.narrow(dim, 0, begin + T)


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)  # queries, keys, values at once
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.n_head = config.n_head
        self.dropout = config.dropout

    def forward(self, x, memory=None, begin=0):
        """x (B, T, C) -> (B, T, C). memory is this block's entry of GPT.new_cache, begin how many steps it holds."""
        B, T, C = x.size()
        q, k, v = (part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)  # (B, nh, T, hs)
                   for part in self.c_attn(x).split(C, dim=2))
        if memory is not None:
            k = remember(memory['k'], k, begin, dim=2)  # (B, nh, begin + T, hs)
            v = remember(memory['v'], v, begin, dim=2)
        # softmax(q k^T / sqrt(hs)) v over the steps up to one's own. With begin > 0 there is one query, the newest token's,
        # and nothing that it must not see.
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=begin == 0)
        y = y.transpose(1, 2).reshape(B, T, C)  # the heads side by side again
        return F.dropout(self.c_proj(y), self.dropout, self.training)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = config.dropout

    def forward(self, x):  # (B, T, C) -> (B, T, 4C) -> (B, T, C)
        return F.dropout(self.c_proj(F.gelu(self.c_fc(x))), self.dropout, self.training)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x, memory=None, begin=0):
        x = x + self.attn(self.ln_1(x), memory, begin)
        x = x + self.mlp(self.ln_2(x))
        return x


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(config.vocab_size, config.n_embd),  # tokens
            wpe=nn.Embedding(config.block_size, config.n_embd),  # positions
            h=nn.ModuleList([Block(config) for _ in range(config.n_layer)]),
            ln_f=nn.LayerNorm(config.n_embd, bias=config.bias),
        ))
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.transformer.wte.weight = self.lm_head.weight  # tied: one matrix reads tokens and writes them

        if config.wavelet != 'off':
            # Not persistent: f(i) follows from the config, 'on' adds nothing to a checkpoint; learnable kernels do.
            f = config.kernel_sizes()
            self.register_buffer('kernel_size', f, persistent=False)  # (C,)
            self.shifts = haar_shifts(((f // 2).clamp(min=1) if config.wavelet == 'past' else f).tolist())
            if config.wavelet == 'ema':  # alpha falls in equal steps from 2 / (shortest f + 1) to 2 / (longest f + 1)
                alpha = torch.ones(config.n_embd)
                alpha[f > 1] = torch.linspace(2 / (f[f > 1].min() + 1), 2 / (f.max() + 1), int((f > 1).sum()))
                self.register_buffer('alpha', alpha, persistent=False)  # (C,)
        if config.wavelet == 'learnable':
            self.averages = nn.ModuleList(LearnableKernels(f) for _ in range(config.n_layer - 1))  # one a place

        # As GPT-2: biases 0, LayerNorm 1, matrices normal with a standard deviation of 0.02, divided by sqrt(2 n_layer) where
        # what they make is added to x, so that its variance does not grow with the depth.
        for name, parameter in self.named_parameters():
            if name.endswith('bias'):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                adds_to_stream = name.endswith('c_proj.weight')
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.n_layer) if adds_to_stream else 0.02)

    def average(self, x, n, memory=None, begin=0):
        """The averages before block n: x (B, T, C) -> (B, T, C).

        With memory and begin > 0, x (B, 1, C) is the newest step alone. Its average is a weighted sum of all steps so far,
        in a tenth of the time that causal_haar takes for all of them. The weights are found at begin = 0: what the
        average makes of a single 1 (its impulse response). So this holds only for a linear filter that treats all
        steps alike and each coordinate by itself; with any other written below, generate with use_cache=False.
        """
        if memory is not None:
            past = remember(memory['x'], x, begin, dim=1)  # (B, begin + T, C)
            if begin > 0:
                return (past * memory['weights'][-past.size(1):]).sum(dim=1, keepdim=True)  # (B, 1, C)
            impulse = F.pad(x.new_ones(1, 1, x.size(2)), (0, 0, 0, self.config.block_size - 1))  # (1, block_size, C)
            memory['weights'] = self.average(impulse, n)[0].flip(0)  # (block_size, C), that of the newest step last
        if self.config.wavelet == 'learnable':
            return self.averages[n - 1](x)
        if self.config.wavelet == 'ema':
            return causal_ema(x, self.alpha)
        if self.config.wavelet == 'past':
            return causal_past(x, self.kernel_size, self.shifts)
        return causal_haar(x, self.kernel_size, self.shifts)

    def new_cache(self, B):
        """Room for what generation remembers of B sequences: a dictionary a block, of its keys and values and of what
        the average before it has read (there is none before the first)."""
        size, nh, C = self.config.block_size, self.config.n_head, self.config.n_embd
        room = self.lm_head.weight.new_zeros
        return [dict(k=room(B, nh, size, C // nh), v=room(B, nh, size, C // nh), x=room(B, size, C))
                for _ in self.transformer.h]

    def forward(self, idx, targets=None, cache=None, begin=0):
        """Next-token logits, and the mean cross-entropy in nats if the targets are given.

        idx      (B, T) token ids, 1 <= T <= block_size
        targets  (B, T) the ids that follow, -1 where a position shall not count; or None
        cache    new_cache(B), to read a sequence piece by piece: first some tokens with begin=0, then one at a time
        begin    how many tokens the cache holds already, exactly
        returns  logits (B, T, V), loss () or None
        """
        B, T = idx.size()
        if begin > 0 and (cache is None or T != 1):
            raise ValueError(f'begin={begin} needs a cache and exactly one new token, and there are {T}')
        if not 0 < T <= self.config.block_size - begin:
            raise ValueError(f'a sequence of {begin + T} tokens: it must have 1 to block_size={self.config.block_size} of them')
        positions = torch.arange(begin, begin + T, device=idx.device)  # (T,)
        x = self.transformer.wte(idx) + self.transformer.wpe(positions)  # (B, T, C)
        x = F.dropout(x, self.config.dropout, self.training)
        for n, block in enumerate(self.transformer.h):
            memory = cache[n] if cache else None
            if n > 0 and self.config.wavelet != 'off':
                x = self.average(x, n, memory, begin)  # between two blocks: the whole idea is this line
            x = block(x, memory, begin)
        logits = self.lm_head(self.transformer.ln_f(x))  # (B, T, V)
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)

    @torch.inference_mode()  # quicker than no_grad by a tenth, where every step is small
    def stream(self, idx, max_new_tokens, temperature=1.0, top_k=None, use_cache=True):
        """Yield max_new_tokens continuations of idx (B, T0), one (B, 1) at a time, each sampled given all before it.

        temperature divides the logits: below 1 safer, above 1 wilder, 0 always the likeliest token. top_k keeps only
        the k likeliest. Switch dropout off first with model.eval().

        The window that the model sees holds at most block_size tokens. When it is full, only its newer half is kept, and
        read again in one pass; between such passes only the new token is computed. So once the window has been full, a
        prediction sees between block_size / 2 and block_size tokens. Without the cache, all of the same window is
        computed for each token.
        """
        if idx.size(1) == 0:
            raise ValueError('the prompt is empty: give at least one token to begin with')
        if not 0 <= temperature < math.inf or (top_k is not None and top_k < 1):
            raise ValueError(f'temperature={temperature} must be at least 0 and finite, top_k={top_k} at least 1')
        size = self.config.block_size
        window, begin = idx[:, -size:], 0
        cache = self.new_cache(len(idx)) if use_cache else None
        for _ in range(max_new_tokens):
            if window.size(1) > size:
                window, begin = window[:, -max(1, size // 2):], 0
            logits = self(window[:, begin:], cache=cache, begin=begin)[0][:, -1].float()  # (B, V)
            if top_k is not None:
                values, kept = logits.topk(min(top_k, logits.size(-1)))
                logits = torch.full_like(logits, -math.inf).scatter(1, kept, values)
            if temperature == 0:
                token = logits.argmax(dim=-1, keepdim=True)  # (B, 1)
            else:
                # The largest becomes 0, so nothing overflows. A temperature below 1e-45 is 0 in float32: 0/0.
                logits = (logits - logits.amax(dim=-1, keepdim=True)) / max(temperature, 1e-30)
                token = torch.multinomial(F.softmax(logits, dim=-1), 1)  # (B, 1)
            yield token
            begin = window.size(1) if use_cache else 0  # the cache holds all of the window; only the new token is new
            window = torch.cat((window, token), dim=1)

    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None, use_cache=True):
        """idx (B, T0) and its continuation: (B, T0 + max_new_tokens). See stream."""
        return torch.cat((idx, *self.stream(idx, max_new_tokens, temperature, top_k, use_cache)), dim=1)


# ---------------------------------------------------------------------------------------------------------------------
# The lesson: python wavelet_gpt.py draws pictures of the functions above. The model does not need what follows.


def dependence(mixer, T=16, C=1):
    """Which input step moves which output step: |d out(t) / d in(s)|, summed over the coordinates: (T, T).

    mixer: any function or module from x (1, T, C) to the same shape. Above the diagonal, in row t, stands its future.
    These are slopes at one random x; only of a linear mixer are they the same everywhere. ValueError where the mixer
    makes no tensor of that shape, or has no slope at all.
    """
    x = torch.randn(1, T, C, generator=torch.Generator().manual_seed(0))
    if not torch.is_tensor(made := mixer(x.clone())):
        raise ValueError(f'the mixer must return one tensor, and it returns {type(made).__name__}')
    slopes = torch.autograd.functional.jacobian(lambda x: mixer(x.clone()), x)  # (1, T, C) of out, (1, T, C) of x
    if slopes.shape != 2 * x.shape:
        raise ValueError(f'the mixer makes {tuple(slopes.shape[:-3])} of x {tuple(x.shape)}: it must keep the shape')
    if not 0 < slopes.abs().sum() < math.inf:  # they would count as no future entry
        raise ValueError('the slopes of the mixer are all zero, or not finite: does it leave torch, or detach x?')
    return slopes.abs().sum(dim=(0, 2, 3, 5))


def future_entries(matrix):
    """How many entries of a dependence matrix look ahead. Below 1e-5 of the largest they count as round-off."""
    return int((matrix.triu(1) > 1e-5 * matrix.max()).sum())


def block_average(x, f):
    """What a DWT gives, repeated to full length: every step of x (B, T, C) gets the mean of its block of f steps."""
    return torch.cat([block.mean(dim=1, keepdim=True).expand_as(block) for block in x.split(f, dim=1)], dim=1)


def cheats(T=16, f=4):
    """Smoothing over f steps in ways that read the future: name -> mixer."""
    k = torch.arange(T)
    slow = F.normalize(torch.cos(math.pi / T * (k + 0.5) * k[:T // f, None]))  # (T / f, T), the slowest
    box = torch.fft.rfft(torch.ones(f, 1) / f, n=T, dim=0)  # the window's spectrum
    return {'block average, repeated': lambda x: block_average(x, f),
            'undecimated, looking ahead': lambda x: sum(x.roll(-s, dims=1) for s in range(f)) / f,
            'FNet, an FFT over time': lambda x: torch.fft.fft(torch.fft.fft(x, dim=2), dim=1).real,
            'DCT, slow cosines kept': lambda x: slow.T @ (slow @ x),
            'FFT convolution, unpadded': lambda x: torch.fft.irfft(torch.fft.rfft(x, dim=1) * box, n=T, dim=1)}


def slide(title, *shape):
    """A 16:9 figure for a lecture hall, its axes (rows, columns), and colour(0..1): sharp dark, a long window bright."""
    from matplotlib import colormaps, rcParams
    from matplotlib.figure import Figure  # without pyplot: no window, no display needed
    rcParams.update({'font.size': 18, 'axes.titlesize': 18, 'figure.titlesize': 24, 'lines.linewidth': 4,
                     'ytick.left': False, **{f'axes.spines.{side}': False for side in ('top', 'right', 'left')}})
    figure = Figure(figsize=(12.8, 7.2), dpi=100, layout='constrained')
    figure.get_layout_engine().set(w_pad=0.2, h_pad=0.15)
    figure.suptitle(title)
    return figure, figure.subplots(*shape, squeeze=False), lambda share: colormaps['viridis'](0.8 * share)


FUTURE = dict(facecolor='none', edgecolor='0.7', hatch='//', linewidth=0)  # in every picture


def draw_staircase(C=128, T=512):
    """Half of the coordinates stay sharp; the others are shared out among the levels, and f doubles at each."""
    figure, [[axes]], colour = slide(f'f(i): how many steps coordinate i averages (C = {C}, T = {T})')
    sizes, counts = kernel_sizes(C, T).unique(return_counts=True)
    for level, (f, n, end) in enumerate(zip(sizes.tolist(), counts.tolist(), counts.cumsum(0).tolist())):
        axes.bar(end - n, level + 1, n, align='edge', color=colour(level / (len(sizes) - 1)))
        axes.text(end - n / 2, level + 1.1, f if f > 1 else 'f = 1: left alone', ha='center')
    axes.set(xlabel='coordinate i', xlim=(0, C), xticks=range(0, C + 1, 16), yticks=[])
    return figure


def draw_impulse_and_step():
    """A spike comes out as a box of f steps and height 1/f, a step as a ramp of f steps; nothing comes out early."""
    figure, [panels], colour = slide('What comes in at t = 4, averaged over f = 1, 2, 4 and 8 steps', 1, 2)
    x = torch.zeros(2, 16, 4)
    x[0, 4], x[1, 4:] = 1, 1
    for axes, title, out in zip(panels, ('an impulse', 'a step'), causal_haar(x, torch.tensor([1, 2, 4, 8]))):
        for level, y in enumerate(out.T):
            axes.stairs(y, baseline=None, color=colour(level / 3), linewidth=4)
            axes.text(3.5 + 2 ** level, y.max() + 0.02, 2 ** level, ha='center')
        axes.set_title(title, pad=24)
        axes.set(xlabel='time step t', xticks=range(0, 17, 4), yticks=[0, 0.5, 1])
    return figure


def draw_line_of_text(line='with the words "DRINK ME," beautifully printed on it'):
    """The capitals of a line of Alice in Wonderland: longer windows are smoother, and later by (f - 1)/2 steps."""
    figure, [[axes]], colour = slide('Where are the capitals? One line of text at five resolutions')
    # The line must have capitals, the last of them 15 letters before its end: else windows are cut off, and come too early.
    t, sizes = torch.arange(len(line)) + 0.5, torch.tensor([1, 2, 4, 8, 16])
    signal = torch.tensor([float(letter.isupper()) for letter in line])  # (T,)
    means = causal_haar(signal[None, :, None].expand(1, -1, 5), sizes)[0].T  # (5, T)
    centres = (means * t).sum(dim=1) / means.sum(dim=1)
    for level, (f, mean, centre) in enumerate(zip(sizes.tolist(), means, centres)):
        axes.stairs(mean - 1.2 * level, baseline=-1.2 * level, color=colour(level / 4), fill=True)
        axes.text(0, -1.2 * level, f'f = {f}')
        axes.text(len(line), -1.2 * level, f'{centre - centres[0]:g} steps late', ha='right')
    axes.plot(centres, -1.2 * torch.arange(5), 'ko-', markersize=12, clip_on=False)
    for at, letter in zip(t, line):
        axes.text(at, 1.2, letter, ha='center', family='monospace', weight='bold' if letter.isupper() else 'normal')
    axes.set(xlim=(0, len(line)), ylim=(-5, 1.2), xticks=[], yticks=[])
    return figure


def draw_wiring(T=16, f=8, t=11):
    """The adds at shifts 1, 2, 4 gather the last 8 steps with 3 adds instead of 7, and no wire leads from the future."""
    levels = haar_shifts([f])  # f: a power of two, at least 2
    figure, [[axes]], colour = slide(f'{len(levels)} shifted adds make the mean of {f} steps: what output {t} is made of')
    for row, (shift, _) in enumerate(levels):
        for s in range(T):
            used = 0 <= t - s < f and (t - s) % (2 * shift) == 0  # output t needs this sum of 2 * shift steps
            for source in (s, s - shift)[:1 + (s >= shift)]:
                shade = colour((row + 1) / len(levels)) if used else '0.9'
                axes.plot((source, s), (row, row + 1), color=shade, zorder=1 + used)
    for row in range(len(levels) + 1):
        axes.scatter(range(T), [row] * T, 200, color=colour(row / len(levels)), zorder=3)
    axes.axvspan(t + 0.5, T - 0.5, **FUTURE)
    axes.set(xlabel='time step', xticks=range(T), yticks=range(len(levels) + 1),
             yticklabels=['x(t)'] + [f'+ {shift} back' for shift, _ in levels], xlim=(-0.5, T - 0.5))
    return figure


def draw_dependence(mixers=None, T=16, C=1):
    """Which input moves which output: causal_haar reads nothing of the future, and each of these other ways does."""
    mixers = mixers or {'causal_haar': lambda x: causal_haar(x, torch.full((C,), 4)), **cheats(T)}
    columns = min(3, len(mixers))
    title = 'Which inputs s (across) move output t (down)?  Red: it reads the future'
    figure, panels, _ = slide(title, -(-len(mixers) // columns), columns)
    for axes in panels.flat[len(mixers):]:
        axes.remove()
    for axes, (name, mixer) in zip(panels.flat, mixers.items()):
        matrix, past, step = dependence(mixer, T, C), torch.ones(T, T).tril() > 0, torch.arange(T + 1) - 0.5
        seen = torch.where(matrix > 1e-5 * matrix.max(), matrix / matrix.max(), math.nan)
        axes.imshow(torch.where(past, seen, math.nan).numpy(), cmap='Purples', vmin=-1, vmax=1)
        axes.imshow(torch.where(past, math.nan, seen).numpy(), cmap='Reds', vmin=-1, vmax=1.4)
        axes.fill_between(step, -0.5, step, step='post', **FUTURE)
        axes.set(title=f'{name}\nfuture entries: {future_entries(matrix)}', xticks=[], yticks=[])
        axes.spines[:].set(visible=True, color='0.8')
    return figure


def main():
    import argparse
    import os
    from pathlib import Path
    parser = argparse.ArgumentParser(description='Draw the lesson: f(i), causal_haar, and how not to do it.')
    parser.add_argument('--out', default='out/lesson', type=Path, help='the folder for the pictures [out/lesson]')
    folder = parser.parse_args().out
    aside = folder / 'lesson.part'  # renamed when it is whole: never half a picture
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for draw in (draw_staircase, draw_impulse_and_step, draw_line_of_text, draw_wiring, draw_dependence):
            path = folder / (draw.__name__.removeprefix('draw_') + '.png')
            draw().savefig(aside, format='png')
            os.replace(aside, path)
            print(f'{path}: {draw.__doc__}')
    except ImportError as error:
        raise SystemExit(f'{error}: the pictures need matplotlib, pip install matplotlib')
    except OSError as error:
        if aside.exists():
            aside.unlink()
        raise SystemExit(f'could not write to {folder}: {error.strerror}')


if __name__ == '__main__':
    main()
