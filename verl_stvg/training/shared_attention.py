"""Attention of one sequence "prompt, answer 1, ... answer n", in which answers see the prompt and themselves only.

Two calls of torch's attention: the prompt attends to itself once, and the answers are a batch of n whose keys are
the prompt's and their own. A mask over the whole sequence would cost its square. Autograd and gradient checkpointing
need nothing of their own.
"""

import functools
from collections.abc import Sequence

import torch
from torch.nn.functional import scaled_dot_product_attention

NAME = "shared_prompt"
"""In transformers' table of attention functions; the table of mask functions has none of that name, so none is made."""
_OWN = "_forward_of_transformers"


class Calls:
    """How often `attend` has run in this process, so that the engine can tell that its attention is the one in use."""

    count = 0


def layout_of(prompt: int, answers: Sequence[int], device: torch.device | str) -> dict:
    """Where the answers lie, for `attend`; tensors and a number, because FSDP walks through a forward's arguments.

    Args:
        prompt: tokens of the prompt, at least one.
        answers: tokens of each answer, which may be none.
        device: of the tensors.

    Returns:
        ``prompt``; ``rows`` (n, longest) places in the sequence, those after an answer's end at its last token;
        ``kept``: the real ones of them, flattened, in the order of the sequence; ``mask`` (longest, prompt + longest),
        true where a token is seen.
    """
    lengths = torch.tensor(list(answers), dtype=torch.long)
    longest = int(lengths.max())
    first = prompt + lengths.cumsum(0) - lengths
    steps = torch.arange(longest)
    rows = torch.where(lengths[:, None] > 0, first[:, None] + steps.minimum((lengths[:, None] - 1).clamp(min=0)), 0)
    kept = (steps < lengths[:, None]).flatten().nonzero()[:, 0]
    own = torch.ones(longest, longest, dtype=torch.bool).tril()
    mask = torch.cat([torch.ones(longest, prompt, dtype=torch.bool), own], 1)
    return {"prompt": prompt, "rows": rows.to(device), "kept": kept.to(device), "mask": mask.to(device)}


def attend(module, query, key, value, attention_mask, scaling=None, shared_prompt=None, **kwargs):
    """An attention function of transformers.

    Args:
        query: (1, heads, tokens, width).
        key: (1, key heads, tokens, width).
        value: as `key`.
        shared_prompt: a `layout_of`.

    Returns:
        (1, tokens, heads, width), and no weights.

    Raises:
        RuntimeError: without a layout, that is, where another model runs under this name.
    """
    if shared_prompt is None:
        raise RuntimeError("attention with a shared prompt was called without a layout of its answers")
    Calls.count += 1
    prompt, rows = shared_prompt["prompt"], shared_prompt["rows"]
    repeats = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(repeats, 1) for tensor in (key, value))
    first = [tensor[:, :, :prompt] for tensor in (query, key, value)]
    out = [scaled_dot_product_attention(*first, is_causal=True, scale=scaling)[0].transpose(0, 1)]
    if rows.shape[1]:
        queries, keys, values = (tensor[0][:, rows].transpose(0, 1) for tensor in (query, key, value))
        keys, values = (
            torch.cat([before.expand(len(rows), -1, -1, -1), own], 2)
            for before, own in zip(first[1:], (keys, values), strict=True)
        )
        found = scaled_dot_product_attention(queries, keys, values, attn_mask=shared_prompt["mask"], scale=scaling)
        out.append(found.transpose(1, 2).flatten(0, 1)[shared_prompt["kept"]])
    return torch.cat(out)[None], None


def register() -> None:
    """Make `attend` known to transformers under its `NAME`."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, attend)


def keep_forward(modeling) -> None:
    """Note transformers' own attention of Qwen2.5-VL, which verl replaces when it packs sequences."""
    setattr(modeling.Qwen2_5_VLAttention, _OWN, modeling.Qwen2_5_VLAttention.forward)


def let_in(attention: type) -> None:
    """Let a layer's attention be transformers' where a layout is given, if verl has replaced it.

    verl's replacement divides sequences where positions begin at 0 only, so that answers would see each other.
    """
    replaced, own = attention.forward, getattr(attention, _OWN, attention.forward)
    if replaced is own or hasattr(replaced, "__wrapped__"):
        return

    @functools.wraps(replaced)
    def forward(self, *args, shared_prompt=None, **kwargs):
        if shared_prompt is None:
            return replaced(self, *args, **kwargs)
        return own(self, *args, shared_prompt=shared_prompt, **kwargs)

    attention.forward = forward


def runs_in(language_model) -> bool:
    """Whether the layers of a language model call `attend` when its configuration names it; tried on the first one.

    Args:
        language_model: of Qwen2.5-VL or Qwen3-VL, weights may be on the device "meta".
    """
    attention = language_model.layers[0].self_attn
    weight = attention.q_proj.weight
    hidden = torch.zeros(1, 3, weight.shape[1], device=weight.device, dtype=weight.dtype)
    rotary = language_model.rotary_emb
    places = torch.zeros(3, 1, 3, dtype=torch.long, device=rotary.inv_freq.device)  # it may lie elsewhere
    config, before = language_model.config, Calls.count
    usual, config._attn_implementation = config._attn_implementation, NAME
    try:
        with torch.no_grad():
            embeddings = rotary(torch.zeros_like(hidden, device=places.device), places)
            layout = layout_of(1, [1, 1], weight.device)
            attention(
                hidden_states=hidden,
                attention_mask=None,
                position_ids=places[0].to(hidden.device),
                position_embeddings=tuple(one.to(hidden.device) for one in embeddings),
                shared_prompt=layout,
            )
    finally:
        config._attn_implementation = usual
    return Calls.count == before + 1
