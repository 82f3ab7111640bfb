"""The agent loop of video grounding: verl's single turn, with failures that name the sample.

An exception in verl's agent loop ends, far from its cause, as "no materializable trajectories"; the sample's uid, its
video and what went wrong must be in the message itself.
"""

from verl.experimental.agent_loop.agent_loop import register
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

AGENT_NAME = "video_grounding"


class RolloutError(RuntimeError):
    """One sample could not be rolled out; names its uid, its videos and the cause."""


@register(AGENT_NAME)
class VideoGroundingAgentLoop(SingleTurnAgentLoop):
    """One prompt with videos, one answer (``rollout.agent.default_agent_loop=video_grounding``)."""

    async def run(self, sampling_params, **kwargs):
        try:
            return await super().run(sampling_params, **kwargs)
        except Exception as error:
            extra = kwargs.get("extra_info") or {}
            videos = ", ".join(_videos(kwargs["raw_prompt"])) or "no video"
            raise RolloutError(f"sample {extra.get('uid', kwargs.get('index'))} with {videos}: {error}") from error


def _videos(messages) -> list[str]:
    parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
    return [str(part.get("video")) for part in parts if part.get("type") == "video"]
