"""verl's FSDP engine with the trajectories of a prompt as one sequence, so that the video is computed once for them.

A micro batch holds rows of one prompt. They become "prompt, answer 1, ... answer n". The attention of
`verl_stvg.training.shared_attention` keeps the answers apart, and each goes on at the positions that it has by itself.
The output layer runs on the places that predict an answer's token only, in chunks that are computed again in the
backward pass. What leaves the engine has verl's layout: a value for every token of every row, zero in the prompt, which
no loss of verl reads.

A micro batch of one row goes verl's own way, and so does a whole batch in which no prompt has two rows.
"""

import functools
import itertools
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint
from verl.utils import tensordict_utils as tu
from verl.utils import torch_functional
from verl.utils.device import get_device_id
from verl.utils.model import extract_multi_modal_inputs
from verl.workers.engine.fsdp import transformer_impl
from verl.workers.utils.padding import response_from_nested

from verl_stvg.patches import banned_tokens
from verl_stvg.training import sharing
from verl_stvg.training.groups import by_prompt, cut, equalised, once
from verl_stvg.training.known_log_probs import OWN
from verl_stvg.training.shared_attention import NAME, Calls, layout_of, let_in, register, runs_in
from verl_stvg.training.sharing import CHUNK

FAMILIES = ("qwen2_5_vl", "qwen3_vl")
_MARK, _QUIET = "share_prompts", "entropy_for_metrics"


_ENGINE: Any = object  # of `sharing_engine`, one of verl's


class SharedPromptEngine(_ENGINE):
    """Goes before an FSDP engine of verl's among the bases of `sharing_engine`.

    Attributes:
        repeated: tokens of each prompt that the last batch would have computed again.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.repeated: list[int] = []
        self._shares, self._asked, self._quiet = False, None, False

    def _build_module(self):
        module = super()._build_module()
        self._shares = not (reason := why_not(module))
        if reason:
            once(f"{sharing.KEY} is set and has no effect, because {reason}; every trajectory computes its prompt")
            return module
        language = module.model.language_model
        register()
        let_in(type(language.layers[0].self_attn))
        if not runs_in(language):
            raise RuntimeError(
                f"{type(language).__name__} does not call the attention function that its configuration names, so that "
                f"answers would see each other; leave {sharing.KEY} out"
            )
        self._text, self._usual, self._head = language.config, language.config._attn_implementation, module.lm_head
        self._project = module.lm_head.forward
        module.lm_head.forward = self._output_layer
        return module

    def _build_lora_module(self, module):
        module = super()._build_lora_module(module)
        if self._shares and module.get_output_embeddings() is not self._head:
            self._shares = False
            once(f"{sharing.KEY} is set and has no effect, because an adapter lies on the output layer")
        return module

    def repeated_everywhere(self) -> list[int]:
        """`repeated` of all ranks; collective."""
        found = [None] * self.get_data_parallel_size()
        dist.all_gather_object(found, self.repeated, self.get_data_parallel_group())
        return [tokens for one in found for tokens in one]

    def forward_backward_batch(self, data, loss_function, forward_only=False):
        """verl's, which asks `micro_batches` for the rows that go together.

        Args:
            data: rows of this rank, nested tensors (B, P* + R*).
            loss_function: of verl; None where nothing but log-probabilities is asked for.
            forward_only: without gradients.
        """
        self.repeated = []
        tu.assign_non_tensor(data, **{_MARK: self._shares})
        own = not forward_only and tu.get_non_tensor_data(data, OWN, default=False)
        self._quiet = own and not tu.get_non_tensor_data(data, "calculate_entropy", default=False)
        if own:
            tu.assign_non_tensor(data, calculate_entropy=True, return_model_output=True)
        output = super().forward_backward_batch(data, loss_function, forward_only)
        if not forward_only:
            total = int(data["input_ids"].offsets()[-1])
            output["metrics"]["shared_prompt/computed_share"] = [1 - sum(self.repeated) / total]
        if own:
            output["metrics"][OWN] = [self._known(output["model_output"], data["response_mask"])]
        return output

    @staticmethod
    def _known(outputs, mask) -> dict[str, list]:
        """What the pass for old log-probabilities would have returned, (R*,) for each row."""
        entropy = outputs["entropy" if "entropy" in outputs else _QUIET]
        columns = {"old_log_probs": outputs["log_probs"], "entropy": entropy}
        return {
            name: [row.float().cpu() for row in response_from_nested(column, mask).unbind()]
            for name, column in columns.items()
        }

    def forward_step(self, micro_batch, loss_function, forward_only):
        """verl's, on one sequence where the micro batch has several rows; the backward pass follows before the next.

        Args:
            micro_batch: rows of one prompt, or one row.
            loss_function: see `forward_backward_batch`.
            forward_only: without gradients.
        """
        if not self._shares:
            return super().forward_step(micro_batch, loss_function, forward_only)
        shared = is_shared(micro_batch)
        self._text._attn_implementation = NAME if shared else self._usual
        before = Calls.count
        result = super().forward_step(micro_batch, loss_function, forward_only)
        if shared and Calls.count - before != self._text.num_hidden_layers:
            raise RuntimeError(f"answers have seen each other in {type(self.module).__name__}; leave {sharing.KEY} out")
        return result

    def prepare_model_inputs(self, micro_batch):
        """Inputs of the model, and what `prepare_model_outputs` needs to know."""
        if not is_shared(micro_batch):
            return super().prepare_model_inputs(micro_batch)
        banned_tokens.look_up(self)
        totals = micro_batch["input_ids"].offsets().diff().tolist()
        answers = micro_batch["responses"].offsets().diff().tolist()
        prompt = totals[0] - answers[0]
        self.repeated += [prompt] * (len(totals) - 1)
        ids, positions = micro_batch["input_ids"].unbind(), micro_batch["position_ids"].unbind()
        packed = torch.cat([ids[0][:prompt], *(row[prompt:] for row in ids)])
        places = torch.cat([positions[0][..., :prompt], *(row[..., prompt:] for row in positions)], -1)
        sources, targets = predicting(prompt, answers)
        temperature = micro_batch["temperature"]
        unit = transformer_impl._is_scalar_unit_temperature(temperature)
        if not isinstance(temperature, torch.Tensor):
            temperature = torch.full((len(totals),), float(temperature), device=packed.device)
        names = ["log_probs"]
        for key, name in (("calculate_entropy", "entropy"), ("calculate_sum_pi_squared", "sum_pi_squared")):
            if tu.get_non_tensor_data(micro_batch, key, default=False):
                names.append(name)
        self._asked = {
            "places": torch.tensor(sources or [0], device=packed.device),
            "labels": packed[prompt:] if sources else packed[:1],
            "temperature": temperature.float().repeat_interleave(torch.tensor(answers, device=packed.device))
            if sources
            else temperature[:1],
            "unit": unit,
            "names": names,
        }
        inputs = extract_multi_modal_inputs(list(micro_batch.get("multi_modal_inputs", []))[:1])
        model_inputs = {
            "input_ids": packed[None],
            "attention_mask": None,
            "position_ids": places[:, None] if places.dim() == 2 else places[None],
            NAME: layout_of(prompt, answers, packed.device),
            **inputs,
        }
        return model_inputs, {"names": names, "targets": torch.tensor(targets, dtype=torch.long, device=packed.device)}

    def prepare_model_outputs(self, output, output_args, micro_batch, logits_processor_func):
        """The model's output as verl has it: nested (B, P* + R*) tensors.

        Args:
            output: of the model.
            output_args: what `prepare_model_inputs` noted.
            micro_batch: rows of one prompt, or one row.
            logits_processor_func: of verl, for verl's own way.
        """
        if "targets" in output_args:
            found = self._laid_out(output, output_args, micro_batch)
        else:
            found = super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)
        if tu.get_non_tensor_data(micro_batch, OWN, default=False):
            micro_batch["old_log_probs"] = response_from_nested(
                found["log_probs"].detach(), micro_batch["response_mask"]
            )
        if self._quiet:
            found[_QUIET] = found.pop("entropy").detach()
        return found

    def _laid_out(self, output, output_args, micro_batch):
        self._asked = None
        targets, offsets = output_args["targets"], micro_batch["input_ids"].offsets()
        values = output.logits[0, : len(targets)]
        empty = values.new_zeros(int(offsets[-1]))
        return {
            name: torch.nested.nested_tensor_from_jagged(empty.index_put((targets,), column), offsets)
            for name, column in zip(output_args["names"], values.unbind(-1), strict=True)
        }

    def _output_layer(self, hidden):
        """In place of the output layer's forward: (1, places, names) of what is asked for, else the logits."""
        asked = self._asked
        if asked is None:
            return self._project(hidden)
        columns = (hidden[0, asked["places"]], asked["labels"], asked["temperature"])
        chunks = list(zip(*(column.split(CHUNK) for column in columns), strict=True))
        measure = functools.partial(self._measure, unit=asked["unit"], names=asked["names"])
        if len(chunks) > 1 and torch.is_grad_enabled():
            measure = functools.partial(checkpoint, measure, use_reentrant=False, preserve_rng_state=False)
        return torch.cat([measure(*chunk) for chunk in chunks])[None]

    def _measure(self, hidden, labels, temperature, unit, names):
        """(places, names) of places whose logits are held at once, by verl's own functions."""
        logits = transformer_impl._scale_logits_by_temperature(
            self._project(hidden), temperature[:, None], is_unit_temperature=unit
        )
        found = [torch_functional.logprobs_from_logits(logits, labels, inplace_backward=len(names) == 1)]
        entropy = self.compute_entropy_from_logits if self.use_remove_padding else torch_functional.entropy_from_logits
        if "entropy" in names:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self._quiet):
                found.append(entropy(logits))
        if "sum_pi_squared" in names:
            found.append(torch_functional.calculate_sum_pi_squared_from_logits(logits))
        return torch.stack([one.float() for one in found], -1)


def is_shared(micro_batch) -> bool:
    """Whether the rows of a micro batch are one sequence."""
    return tu.get_non_tensor_data(micro_batch, _MARK, default=False) and len(micro_batch) > 1


def predicting(prompt: int, answers: list[int]) -> tuple[list[int], list[int]]:
    """Places of the shared sequence that predict the answers' tokens, and where verl wants the values of each.

    Args:
        prompt: tokens of the prompt.
        answers: tokens of each answer.

    Returns:
        Places in "prompt, answer 1, ... answer n", and in the rows "prompt, answer" one after the other; both one
        for each token of the answers. The prompt's last place predicts the first token of every answer.
    """
    sources, targets = [], []
    firsts = itertools.accumulate(answers, initial=prompt)
    for row, (first, length) in enumerate(zip(firsts, answers, strict=False)):
        if length:
            sources += [prompt - 1, *range(first, first + length - 1)]
        begin = (row + 1) * prompt + first - prompt - 1
        targets += range(begin, begin + length)
    return sources, targets


def why_not(module) -> str | None:
    """Why the prompts of a model cannot be shared, None where they can."""
    config = module.config
    text = config.get_text_config()
    if config.model_type not in FAMILIES:
        return f"models of type {config.model_type} are not known ({', '.join(FAMILIES)} are)"
    if set(getattr(text, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        return "the model has layers that do not see the whole prompt"
    if text.attention_dropout:
        return f"the model's attention_dropout is {text.attention_dropout}"
    return None


def micro_batches(stock, data, dp_group=None, **kwargs):
    """In place of verl's ``prepare_micro_batches``: one part of one prompt's rows each, equally many on all ranks.

    Args:
        stock: verl's function, asked where no rank has two rows of one prompt.
        data: a rank's rows; a micro batch holds ``max_token_len_per_gpu`` tokens, whatever the number of rows, and a
            longer row is computed alone, which ``use_dynamic_bsz`` forbids.
        dp_group: of the ranks.

    Returns:
        Micro batches, and the rows of each.
    """

    def verls_own():
        tu.assign_non_tensor(data, **{_MARK: False})  # its micro batches may hold rows of several prompts
        return stock(data, dp_group, **kwargs)

    if "uid" not in data.keys():
        once(
            f"{sharing.KEY} is set and has no effect, because batches carry no uid; trainer.use_v1=true has them do so"
        )
        return verls_own()
    dynamic = tu.get_non_tensor_data(data, "use_dynamic_bsz", default=True)
    budget = tu.get_non_tensor_data(data, "max_token_len_per_gpu", default=None)
    prompts, answers = (data[name].offsets().diff().tolist() for name in ("prompts", "responses"))
    parts = []
    for uid, rows in by_prompt(data):
        parts += cut(rows, uid, prompts[rows[0]], answers, budget, strict=dynamic)
    agreed = torch.tensor([len(parts), max(map(len, parts))], device=get_device_id())
    dist.all_reduce(agreed, op=dist.ReduceOp.MAX, group=dp_group)
    count, largest = agreed.tolist()
    if largest == 1:
        return verls_own()
    parts = equalised(parts, count)
    tu.assign_non_tensor(data, use_dynamic_bsz=True)  # or verl does not bring the results into the rows' order
    return [tu.index_select_tensor_dict(data, part) for part in parts], parts


@functools.cache
def sharing_engine(engine: type) -> type:
    """An engine of verl's that shares prompts."""
    return type(f"SharedPrompt{engine.__name__}", (SharedPromptEngine, engine), {})


def install(transformer_impl) -> None:
    """Let verl's registry answer with `sharing_engine` where the configuration asks for it."""
    stock, registry = transformer_impl.prepare_micro_batches, transformer_impl.EngineRegistry
    look_up = registry.get_engine_cls

    def prepare_micro_batches(data, dp_group=None, **kwargs):
        if tu.get_non_tensor_data(data, _MARK, default=False):
            return micro_batches(stock, data, dp_group, **kwargs)
        return stock(data=data, dp_group=dp_group, **kwargs)

    def get_engine_cls(model_type, backend):
        found = look_up(model_type, backend)
        if sharing.wanted() and model_type == "language_model" and backend in ("fsdp", "fsdp2"):
            return sharing_engine(found)
        return found

    transformer_impl.prepare_micro_batches = prepare_micro_batches
    registry.get_engine_cls = staticmethod(get_engine_cls)
