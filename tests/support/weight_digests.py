"""For `tests/long/test_two_nodes.py`: writes down which weights each vLLM of a run has after each sync.

verl takes it as ``actor_rollout_ref.rollout.engine_kwargs.vllm.worker_extension_cls``.
"""

import hashlib
import os
from pathlib import Path

from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension


class Digests(vLLMColocateWorkerExtension):
    """verl's extension of vLLM's worker, which appends a hash of all parameters to ``$DIGESTS/<replica>``."""

    def update_weights_from_ipc(self, *args, **kwargs):
        super().update_weights_from_ipc(*args, **kwargs)
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model_runner.model.named_parameters()):
            digest.update(name.encode())
            digest.update(tensor.detach().contiguous().numpy().tobytes())
        with Path(os.environ["DIGESTS"], os.environ["VERL_REPLICA_RANK"]).open("a") as file:
            file.write(digest.hexdigest() + "\n")
