"""The two programs that answer prompts, vLLM and transformers, behind one method, without a trainer around them.

Both read the same prompts (`verl_stvg.rows.prompts`) on the same clock (`verl_stvg.video.positions`), neither says what
the rollout cannot say (`verl_stvg.patches.banned_tokens`), and no sampling setting of the model's own is taken over, as
in training: what is not asked for is off.
"""

import copy
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from verl_stvg.base import vllm_build
from verl_stvg.inference import checkpoint
from verl_stvg.inference.settings import Settings
from verl_stvg.patches import transformers_positions, vllm_positions
from verl_stvg.patches.banned_tokens import Banned
from verl_stvg.rows.answers import Answer
from verl_stvg.rows.chat_template import settle
from verl_stvg.rows.prompts import Prompt, PromptMaker
from verl_stvg.rows.row import Row
from verl_stvg.video.cache import CacheError

if TYPE_CHECKING:
    from vllm.inputs import TokensPrompt

_FLYING_BYTES = 8 * 2**30
"""Most bytes of pixels that wait in vLLM; one prompt may be over it."""
_READERS = 4
_END_SECONDS = 10.0


class Engine:
    """Answers rows; of which `VLLM` and `Transformers` are the two kinds.

    Args:
        settings: model and sampling.
        videos: most videos of a row.
    """

    max_length: int

    def __init__(self, settings: Settings, videos: int = 1):
        transformers_positions.mend_transformers()
        self.settings, self.videos = replace(settings, model=checkpoint.resolve(settings.model)), videos
        self.processor = AutoProcessor.from_pretrained(self.settings.model)
        settle(self.processor)
        # readers have a tokenizer of their own: padding a batch changes the state of the one that does it
        self.banned = Banned.of(self.processor.tokenizer, self.processor)
        self._make_prompt = PromptMaker(copy.deepcopy(self.processor), settings.store, settings.template)
        self._load()

    def serves(self, settings: Settings, videos: int) -> bool:
        """Whether this engine's model, loaded as it is, answers for these settings."""
        return self.videos >= videos and all(
            getattr(self.settings, name) == getattr(settings, name)
            for name in ("model", "engine", "dtype", "max_model_len", "store")
        )

    def _load(self) -> None:
        """Load the model; sets ``max_length``, the most tokens of prompt and answer together."""
        raise NotImplementedError

    def answers(self, rows: Iterable[Mapping[str, Any]], settings: Settings | None = None) -> Iterator[list[Answer]]:
        """Answer rows, a few at a time, in any order; each row once.

        Args:
            rows: as `verl_stvg.inference.settings.read_rows` gives them.
            settings: of the sampling, if other than those of the engine; the model's part must be the same.
        """
        settings = settings or self.settings
        make = replace(self._make_prompt, template=settings.template)
        asked = ahead(lambda row: self._ask(row, make, settings), rows, _READERS, settings.batch_size)
        yield from self._generate(asked, settings)

    def _generate(self, asked: Iterator[Prompt | Answer], settings: Settings) -> Iterator[list[Answer]]:
        raise NotImplementedError

    def _ask(self, row: Mapping[str, Any], make: PromptMaker, settings: Settings) -> Prompt | Answer:
        """The prompt of a row, or the answer that says why there is none."""
        row = Row.of(row)
        try:
            prompt = make(row)
        except CacheError:
            raise
        except ValueError as error:
            return Answer(row.uid, error=str(error))
        if prompt.num_tokens + settings.max_tokens > self.max_length:
            return Answer(
                row.uid,
                error=f"a prompt of {prompt.num_tokens} tokens and an answer of up to {settings.max_tokens} are over "
                f"the {self.max_length} of the model; raise --max-model-len, or lower max_pixels or fps of the row",
            )
        return prompt

    def close(self) -> None:
        """Give the memory back."""


class VLLM(Engine):
    """Continuous batching: up to ``batch`` prompts are in vLLM, and each that is done makes room for the next."""

    def _load(self) -> None:
        from vllm.platforms import current_platform

        if on_cpu := current_platform.is_cpu():
            for name, value in vllm_build.CPU_DEFAULTS.items():
                os.environ.setdefault(name, value)
        vllm_positions.mend_vllm()
        from vllm import LLM

        settings = self.settings
        self.llm = LLM(
            settings.model,
            dtype=settings.dtype,
            seed=settings.seed,
            max_model_len=settings.max_model_len,
            tensor_parallel_size=settings.tensor_parallel,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            enforce_eager=on_cpu,  # compiling for a CPU takes minutes
            # on a CPU vLLM 0.24 dies when it takes back the draw of a seeded request whose prompt it has read in part
            enable_chunked_prefill=False if on_cpu else None,
            limit_mm_per_prompt={"image": 0, "video": self.videos},
            worker_extension_cls="verl_stvg.patches.banned_tokens.BanningWorker",
        )
        self.llm.collective_rpc("ban", args=(self.banned.vocabulary, self.banned.ids))
        self.max_length = self.llm.model_config.max_model_len

    def _generate(self, asked, settings) -> Iterator[list[Answer]]:
        flying: dict[str, Prompt] = {}
        held = 0
        for prompt in asked:
            if isinstance(prompt, Answer):
                yield [prompt]
                continue
            while flying and (len(flying) >= settings.batch_size or held + prompt.pixel_bytes > _FLYING_BYTES):
                yield self._land(flying)
                held = sum(other.pixel_bytes for other in flying.values())
            flying[self._send(prompt, settings)] = prompt
            held += prompt.pixel_bytes
        while flying:
            yield self._land(flying)

    def _send(self, prompt: Prompt, settings: Settings) -> str:
        """Hand a prompt to vLLM; returns the name under which its output comes."""
        from vllm import SamplingParams

        sampling = SamplingParams(
            n=settings.samples,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            max_tokens=settings.max_tokens,
            seed=seed_of(settings.seed, prompt.uid) if settings.temperature else None,
        )
        (name,) = self.llm.enqueue([vllm_prompt(prompt)], sampling, use_tqdm=False)
        return name.split("-")[0]  # vLLM adds a random part for itself

    def _land(self, flying: dict[str, Prompt]) -> list[Answer]:
        """One step of vLLM; what is done leaves `flying`."""
        from vllm import RequestOutput

        done = []
        for output in self.llm.llm_engine.step():
            if isinstance(output, RequestOutput) and output.finished:
                samples = sorted(output.outputs, key=lambda sample: sample.index)
                written = [(sample.text, sample.finish_reason or "", len(sample.token_ids)) for sample in samples]
                done.append(answer_to(flying.pop(output.request_id), written))
        return done

    def close(self) -> None:
        """End vLLM's processes."""
        self.llm.llm_engine.engine_core.shutdown(timeout=_END_SECONDS)


class Transformers(Engine):
    """Batches of ``batch`` prompts, padded on the left; slower, and it runs wherever the model does."""

    def _load(self) -> None:
        settings = self.settings
        config = AutoConfig.from_pretrained(settings.model)
        self.max_length = settings.max_model_len or config.get_text_config().max_position_embeddings
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = AutoModelForImageTextToText.from_pretrained(settings.model, dtype=settings.dtype)
        self.model = model.to(self.device).eval()
        self.suppressed = self.banned.all(self.model.get_output_embeddings().out_features)
        ends = self.model.generation_config.eos_token_id
        ends = self.processor.tokenizer.eos_token_id if ends is None else ends
        self.ends = [ends] if isinstance(ends, int) else list(ends)

    def _generate(self, asked, settings) -> Iterator[list[Answer]]:
        while batch := list(islice(asked, settings.batch_size)):
            prompts = [prompt for prompt in batch if isinstance(prompt, Prompt)]
            errors = [answer for answer in batch if isinstance(answer, Answer)]
            yield errors + (self._batch(prompts, settings) if prompts else [])

    @torch.inference_mode()
    def _batch(self, prompts: list[Prompt], settings: Settings) -> list[Answer]:
        inputs = processor_inputs(self.processor, prompts).to(self.device)
        torch.manual_seed(seed_of(settings.seed, prompts[0].uid))
        tokenizer = self.processor.tokenizer
        sampling = {"do_sample": False}
        if settings.temperature:
            sampling = {
                "do_sample": True,
                "temperature": settings.temperature,
                "top_p": settings.top_p,
                "top_k": max(settings.top_k, 0),
            }
        config = GenerationConfig(  # transformers fills what is left out from the model's own
            **sampling,
            max_new_tokens=settings.max_tokens,
            repetition_penalty=1.0,
            num_return_sequences=settings.samples,
            eos_token_id=self.ends,
            pad_token_id=tokenizer.pad_token_id,
            suppress_tokens=self.suppressed,
        )
        found = self.model.generate(**inputs, generation_config=config)[:, inputs["input_ids"].shape[1] :].tolist()
        samples = [self._sample(ids) for ids in found]
        n = settings.samples
        return [answer_to(prompt, samples[k * n : (k + 1) * n]) for k, prompt in enumerate(prompts)]

    def _sample(self, ids: list[int]) -> tuple[str, str, int]:
        """Text, why it ends, and its number of tokens, the end included."""
        end = next((k for k, token in enumerate(ids) if token in self.ends), None)
        kept = ids if end is None else ids[: end + 1]
        text = self.processor.tokenizer.decode(kept, skip_special_tokens=True)
        return text, "length" if end is None else "stop", len(kept)

    def close(self) -> None:
        """Let go of the model."""
        del self.model
        torch.cuda.empty_cache()


ENGINES = {"vllm": VLLM, "transformers": Transformers}


def start(settings: Settings, videos: int = 1) -> Engine:
    """The engine that the settings name, its model loaded."""
    return ENGINES[settings.engine](settings, videos)


def answer_to(prompt: Prompt, samples: Sequence[tuple[str, str, int]]) -> Answer:
    """The answer to a prompt, whose texts start with what the chat template has written of them.

    Args:
        prompt: see there.
        samples: of each the text that the model wrote, why it ends, and its number of tokens.
    """
    texts, finish, tokens = zip(*samples, strict=True)
    return Answer(prompt.uid, tuple(prompt.opened + text for text in texts), finish, tokens)


def vllm_prompt(prompt: Prompt) -> "TokensPrompt":
    """What vLLM is given: tokens, and each video as its frames, uint8 (T, 3, H, W), with metadata."""
    given: TokensPrompt = {"prompt_token_ids": list(prompt.ids)}
    if prompt.videos:
        given["multi_modal_data"] = {"video": [(video.tensor(), video.plan.metadata()) for video in prompt.videos]}
    return given


def processor_inputs(processor, prompts: list[Prompt]):
    """What a transformers model is given: the processor's tensors of several prompts, padded on the left."""
    videos = [video for prompt in prompts for video in prompt.videos]
    return processor(
        text=[prompt.text for prompt in prompts],
        videos=[video.tensor() for video in videos] or None,
        video_metadata=[video.plan.metadata() for video in videos] or None,
        do_sample_frames=False,
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )


def seed_of(seed: int, uid: str) -> int:
    """Seed of a row's samples, the same whatever is asked beside it."""
    return int.from_bytes(hashlib.sha256(f"{seed} {uid}".encode()).digest()[:4], "big")


def ahead(task: Callable, items: Iterable, workers: int, depth: int) -> Iterator:
    """Results of a task in the order of its items, up to ``depth`` of them begun before they are asked for.

    Args:
        task: called with each item, in threads.
        items: taken one at a time, in the thread of the caller.
        workers: threads.
        depth: most results, begun or finished, that wait for the caller.
    """
    pool, begun = ThreadPoolExecutor(workers), deque()
    try:
        for item in items:
            begun.append(pool.submit(task, item))
            if len(begun) > depth:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
