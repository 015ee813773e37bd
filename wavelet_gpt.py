"""
WaveletGPT in one file: a GPT whose blocks, from the second one on, see several time scales.

Between consecutive decoder blocks, half of the coordinates of each token's vector are replaced
by their means over the last 2, 4, 8 ... time steps. The other half stays as it is. So each
block but the first sees the present sharply, and the recent past at many resolutions, from
the first training step on. Attention could learn such means; here they are given.
A mean over the last 2^l steps is the approximation coefficient of a Haar wavelet at level l,
up to a constant factor. No parameter is added.

The idea: Prateek Verma, "WaveletGPT: Wavelet Inspired LLMs", arXiv 2409.12924. Its authors
published no code. This is written from the description of their method.
Read in this order: kernel_sizes (which coordinate sees how far), causal_haar (the means),
GPT.forward (where they go). The rest is a GPT-2 decoder with nanoGPT's parameter names.

    letter       meaning                                        in the paper
    B            batch: how many sequences at once
    T, t         time steps of a sequence, one of them          time step
    block_size   the longest T                                  context length
    C, i         embedding coordinates (n_embd), one of them    embedding dimension E
    nh, hs       attention heads, coordinates of a head         nh * hs = C
    V            vocabulary size
    f(i)         how many steps coordinate i is averaged over   kernel size
    level        log2 f(i): level 1 averages 2 steps            level I, II ... IX
"""

import math
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn as nn
import torch.nn.functional as F

# ---- the wavelet ----
def kernel_sizes(n_embd, block_size, fraction=0.5, min_level=1, max_level=None):
    """
    The mapping f(i): how many time steps coordinate i is averaged over. A list of n_embd ints.
    The first coordinates are left alone (f = 1). The last round(fraction * n_embd) are shared
    out evenly among the levels min_level ... max_level; if they are fewer, some levels get none.
    Without max_level the longest window is the longest that fits into block_size. For C = 128
    and block_size=512: 64 coordinates with f = 1, 8 with 2, and 7 each with 4, 8, 16 ... 512.
    The paper's printed formula could not be read. This one is ours, from its description.
    Raises ValueError for a fraction or for levels that do not fit.
    """
    longest = block_size.bit_length() - 1  # floor(log2(block_size))
    max_level = longest if max_level is None else max_level
    if not 0 <= fraction <= 1:
        raise ValueError(f'wavelet_fraction={fraction} is not between 0 and 1')
    if not 1 <= min_level <= max_level <= longest:
        raise ValueError(f'wavelet levels {min_level} to {max_level} do not fit: need '
                         f'1 <= min <= max <= {longest}, as 2^max must fit into {block_size} steps')

    n = round(fraction * n_embd)  # so many coordinates are averaged
    n_levels = max_level - min_level + 1
    levels = [min_level + i * n_levels // n for i in range(n)]  # in equal shares
    return [1] * (n_embd - n) + [2 ** level for level in levels]

def causal_haar(x, kernel_size):
    """
    Average coordinate i of x over its last f(i) time steps, zeros before the first step:

        y(t, i) = 1/f(i) * (x(t, i) + x(t-1, i) + ... + x(t-f(i)+1, i))

    x            (..., T, C), any T
    kernel_size  f(i): C positive powers of two, in any order
    returns      y, a tensor like x
    Raises ValueError for other sizes.
    """
    sizes = [int(f) for f in kernel_size]
    if len(sizes) != x.size(-1) or any(f < 1 or f & (f - 1) for f in sizes):
        raise ValueError(f'need {x.size(-1)} powers of two, one a coordinate, not {sizes}')

    if sizes != sorted(sizes):  # bring the short windows to the front, and back
        order = torch.tensor(sizes, device=x.device).argsort(stable=True)  # (C,)
        return causal_haar(x[..., order], sorted(sizes))[..., order.argsort()]

    # All windows share their sums. A sum over 2s steps is two sums over s steps, one of them s
    # steps ago: of [1, 1, 2, 8] the 1s leave first, then the 2, and the 8 goes on to 4 and 8.
    # cumsum(t) - cumsum(t - f) would leave round-off of what is outside the window.
    a = x.float() if x.dtype.itemsize < 4 else x  # 16 bits are too few for long sums
    s, averages = 1, []  # a: the coordinates that are not done, summed over the last s steps
    for f, same in groupby(sizes):
        while s < f and s < a.size(-2):  # beyond T only zeros are left to add
            a = a + F.pad(a, (0, 0, s, -s))  # a(t - s): s zeros in front, the last s steps off
            s = 2 * s
        n = len(list(same))  # so many coordinates have this f, and are done
        done, a = a.split([n, a.size(-1) - n], dim=-1)
        averages.append(done / f if f > 1 else done)
    return torch.cat(averages, dim=-1).to(x.dtype)  # (..., T, C)

# ---- the GPT ----
@dataclass
class GPTConfig:
    block_size: int = 256  # T, the longest context
    vocab_size: int = 256  # V
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128  # C
    dropout: float = 0.0
    bias: bool = False  # in Linear and LayerNorm layers. True: as GPT-2. False: a bit better
    wavelet: str = 'on'  # on: the paper's. off: a plain GPT. Others: see the variants below
    wavelet_fraction: float = 0.5  # the share of the coordinates that is averaged
    wavelet_min_level: int = 1  # the shortest window is 2^1 steps (past: half of it)
    wavelet_max_level: int = None  # the longest window. None: as long as T allows (past: T and C)

    def __post_init__(self):
        if self.n_embd % self.n_head:
            raise ValueError(f'n_embd={self.n_embd} is not a multiple of n_head={self.n_head}')
        if not 0 <= self.dropout < 1:
            raise ValueError(f'dropout={self.dropout} is not at least 0 and below 1')
        if self.wavelet not in ('on', 'off', 'learnable', 'ema', 'past'):
            raise ValueError(f'wavelet={self.wavelet} is not on, off, learnable, ema or past')
        if self.wavelet not in ('off', 'past') and self.n_layer < 2:
            raise ValueError(f'n_layer={self.n_layer} must be 2 or more, for averages in between')
        if self.wavelet != 'off':
            self.kernel_sizes()  # it checks the levels

    def kernel_sizes(self):
        sizes = kernel_sizes(self.n_embd, self.block_size, self.wavelet_fraction,
                             self.wavelet_min_level, self.wavelet_max_level)
        assert self.wavelet == 'on' or sizes == sorted(sizes), 'the variants need an ascending f(i)'
        return halving_sizes(sizes) if self.wavelet == 'past' else sizes

def remember(cache, name, new, dim):
    """All steps so far of 'k' and 'v' (attention) or 'x', 'x1', 'x2' (averages): the new last."""
    if cache is None:
        return new
    if name in cache:
        new = torch.cat((cache[name], new), dim=dim)
    cache[name] = new
    return new

class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)  # q, k, v
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)
        self.n_head = config.n_head
        self.dropout = config.dropout

    def forward(self, x, cache=None):
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(C, dim=2)
        q = q.view(B, T, self.n_head, -1).transpose(1, 2)  # (B, nh, T, hs)
        k = k.view(B, T, self.n_head, -1).transpose(1, 2)  # (B, nh, T, hs)
        v = v.view(B, T, self.n_head, -1).transpose(1, 2)  # (B, nh, T, hs)
        k = remember(cache, 'k', k, dim=2)  # (B, nh, all steps so far, hs)
        v = remember(cache, 'v', v, dim=2)  # (B, nh, all steps so far, hs)

        # softmax(q k^T / sqrt(hs)) v. A step alone sees all the cache: is_causal would hide most.
        dropout = self.dropout if self.training else 0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=T > 1)
        y = y.transpose(1, 2).reshape(B, T, C)  # the heads side by side again
        return self.resid_dropout(self.c_proj(y))

class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        x = F.gelu(self.c_fc(x))  # (B, T, 4 * C)
        return self.dropout(self.c_proj(x))  # (B, T, C)

class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)
        self.past = config.kernel_sizes() if config.wavelet == 'past' else None

    def read(self, x, name, cache):
        """What attention and the MLP read: x. With `past` half of it are means of earlier steps."""
        if self.past:
            so_far = remember(cache, name, x, dim=1)  # (B, all steps so far, C)
            x = causal_past(so_far, self.past)[:, -x.size(1):]
        return x  # (B, T, C)

    def forward(self, x, cache=None):
        x = x + self.attn(self.read(self.ln_1(x), 'x1', cache), cache)
        x = x + self.mlp(self.read(self.ln_2(x), 'x2', cache))
        return x

class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(config.vocab_size, config.n_embd),
            wpe=nn.Embedding(config.block_size, config.n_embd),
            h=nn.ModuleList([Block(config) for _ in range(config.n_layer)]),
            ln_f=nn.LayerNorm(config.n_embd, bias=config.bias),
        ))
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.transformer.wte.weight = self.lm_head.weight  # input and output share one matrix
        self.drop = nn.Dropout(config.dropout)

        # f(i) follows from the config, so it is neither a parameter nor in a checkpoint
        between = config.wavelet not in ('off', 'past')  # past stands in the blocks: Block.read
        self.kernel_size = config.kernel_sizes() if between else None
        if config.wavelet == 'learnable':
            self.kernels = nn.ModuleList([LearnableKernels(self.kernel_size)
                                          for _ in range(config.n_layer - 1)])

        # as GPT-2: smaller where a block adds to the residual stream, which all blocks share
        for name, p in self.named_parameters():
            if name.endswith('bias'):
                nn.init.zeros_(p)
            elif name.endswith('c_proj.weight'):
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * config.n_layer))
            elif p.dim() == 2:
                nn.init.normal_(p, std=0.02)

    def average(self, x, n, cache=None):
        """
        What stands between block n - 1 and block n: (B, T, C) -> (B, T, C). With a cache, x
        is what is new, and all that was read so far is averaged: right for any causal filter.
        """
        T = x.size(1)
        x = remember(cache, 'x', x, dim=1)  # (B, all steps so far, C)
        if self.config.wavelet == 'on':
            x = causal_haar(x, self.kernel_size)
        elif self.config.wavelet == 'ema':
            x = causal_ema(x, self.kernel_size)
        elif self.config.wavelet == 'learnable':
            x = self.kernels[n - 1](x)
        return x[:, -T:]

    def forward(self, idx, targets=None, kv_cache=None):
        """
        idx       (B, T) token ids, T at most block_size
        targets   (B, T) the tokens that follow; those of -1 do not count
        kv_cache  a dict for each block, empty at first: see stream
        returns   logits (B, T, V), and the mean loss in nats a token, or None without targets
        """
        B, T = idx.size()
        begin = kv_cache[0]['k'].size(2) if kv_cache and kv_cache[0] else 0  # tokens in the cache
        if not 0 < T <= self.config.block_size - begin:
            raise ValueError(f'{begin + T} tokens: need 1 to block_size={self.config.block_size}')
        assert begin == 0 or T == 1, 'after the first call, a cache takes one token at a time'
        pos = torch.arange(begin, begin + T, device=idx.device)  # (T,)
        x = self.drop(self.transformer.wte(idx) + self.transformer.wpe(pos))  # (B, T, C)
        for n, block in enumerate(self.transformer.h):
            cache = kv_cache[n] if kv_cache else None
            if n > 0 and self.kernel_size:
                x = self.average(x, n, cache)  # between two blocks: the whole idea is this line
            x = block(x, cache)
        logits = self.lm_head(self.transformer.ln_f(x))  # (B, T, V)
        if targets is None:
            return logits, None
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
        return logits, loss

    @torch.no_grad()
    def stream(self, idx, max_new_tokens, temperature=1.0, top_k=None, use_cache=True):
        """
        Yield max_new_tokens tokens (B, 1) that continue idx (B, T0), one by one.
        temperature divides the logits: below 1 is safer, 0 takes always the likeliest token.
        top_k keeps the k likeliest only. Call model.eval() first, it switches dropout off.
        The last block_size tokens of idx are read. A full context keeps its newer half, read again.
        """
        block_size = self.config.block_size
        context = idx[:, -block_size:]  # (B, T)
        kv_cache = None
        for _ in range(max_new_tokens):
            if context.size(1) > block_size:
                context = context[:, -max(1, block_size // 2):]
                kv_cache = None
            if kv_cache is None or not use_cache:
                unread = context
                kv_cache = [{} for _ in self.transformer.h]
            else:
                unread = context[:, -1:]  # the cache holds the rest
            logits = self(unread, kv_cache=kv_cache)[0][:, -1].float()  # (B, V)
            if top_k is not None:
                smallest = logits.topk(min(top_k, logits.size(-1))).values[:, -1:]  # (B, 1)
                logits[logits < smallest] = -math.inf
            if temperature == 0:
                token = logits.argmax(dim=-1, keepdim=True)  # (B, 1)
            else:
                probs = F.softmax(logits / temperature, dim=-1)
                token = torch.multinomial(probs, num_samples=1)  # (B, 1)
            yield token
            context = torch.cat((context, token), dim=1)  # (B, T + 1)

    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None, use_cache=True):
        """idx (B, T0) and its continuation: (B, T0 + max_new_tokens). See stream."""
        stream = self.stream(idx, max_new_tokens, temperature, top_k, use_cache)
        return torch.cat((idx, *stream), dim=1)

# ---- the variants: other filters ----
def halving_sizes(sizes):
    """
    f(i) of `past`, from the sizes of kernel_sizes: half of the averaged coordinates get the
    shortest window, half of the rest the next longer one, and so on. Of 64, 32 have f = 2,
    16 have f = 4 ... and the last one has f = 128, if the levels go so far.
    """
    alone = sizes.count(1)
    n = len(sizes) - alone  # so many coordinates are averaged
    halved = [sizes[alone] * 2 ** int(math.log2(n / left)) for left in range(n, 0, -1)]
    return sizes[:alone] + [min(f, sizes[-1]) for f in halved]

def causal_past(x, kernel_size):
    """
    Ours, not the paper's: average coordinate i over the f(i)/2 steps before the present one.
    The coordinates with f = 1 keep the present step, and must stand first. See Block.read.
    """
    alone = kernel_size.count(1)
    means = causal_haar(x, [max(1, f // 2) for f in kernel_size])[..., alone:]
    earlier = F.pad(means, (0, 0, 1, -1))  # at t stands the mean that ends at t - 1
    return torch.cat((x[..., :alone], earlier), dim=-1)

def causal_ema(x, kernel_size):
    """
    What the paper compares with, an exponential moving average, zero before the first step:
    y(t, i) = alpha(i) x(t, i) + (1 - alpha(i)) y(t-1, i). alpha falls in equal steps from 1
    to 0 over the averaged coordinates, both ends left out. Of f(i) only matters where it is 1.
    """
    alone = kernel_size.count(1)
    n = len(kernel_size) - alone
    alpha = torch.linspace(1, 0, n + 2, device=x.device)[1:-1]  # (n,)
    a = x[..., alone:] * alpha
    s = 1
    while s < x.size(-2):
        # the sum over 2s steps: the older half has another factor (1 - alpha)^s
        a = a + (1 - alpha) ** s * F.pad(a, (0, 0, s, -s))
        s = 2 * s
    return torch.cat((x[..., :alone], a.to(x.dtype)), dim=-1)

class LearnableKernels(nn.Module):
    """
    The paper's second variant: each averaged coordinate learns the weights of its f(i) steps.
    A parameter is f(i) times the weight and starts at 1, Haar's average: Adam moves each by
    about the learning rate, say 0.004, and would change a weight of 1/256 by its own size.
    """
    def __init__(self, kernel_size):
        super().__init__()
        windows = sorted(set(kernel_size) - {1})
        self.kernels = nn.ParameterList([torch.ones(kernel_size.count(f), 1, f) for f in windows])

    def forward(self, x):
        counts = [len(kernel) for kernel in self.kernels]
        alone, *parts = x.split([x.size(2) - sum(counts), *counts], dim=2)
        averages = [alone]
        with torch.autocast(x.device.type, enabled=False):  # it would round x to 16 bits
            for kernel, part in zip(self.kernels, parts):
                n, _, f = kernel.size()
                padded = F.pad(part.transpose(1, 2), (f - 1, 0))  # (B, n, f - 1 + T)
                y = F.conv1d(padded, kernel / f, groups=n)  # (B, n, T), the newest weight is last
                averages.append(y.transpose(1, 2))  # (B, T, n)
        return torch.cat(averages, dim=2)  # (B, T, C)

if __name__ == '__main__':
    print('This file is to be read and imported. To see what it does: python assets/lesson.py')
