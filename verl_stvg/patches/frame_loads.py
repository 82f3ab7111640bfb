"""What making pixels costs verl's engines: a metric that they report beside their own.

Versions: verl 0.9.1, whose engines have no place for it.
"""

from verl_stvg.video.keys import LOADED


def report_loads(engine_base) -> None:
    """Let verl's engines report what making pixels costs them: ``actor/video/load_seconds`` and ``load_bytes``.

    Per rank and update: what went into the update itself and, in the same process, into log-probabilities before it.
    """
    engine = engine_base.BaseEngine
    stock = engine.train_batch

    def train_batch(self, data, loss_function):
        outputs = stock(self, data, loss_function)
        if self.is_mp_src_rank_with_outputs():
            outputs["metrics"].update({f"video/{name}": [value] for name, value in LOADED.items()})
        LOADED.update(dict.fromkeys(LOADED, 0.0))
        return outputs

    engine.train_batch = train_batch
