"""HC-STVG and VidSTG for lmms-eval, which has neither: give this folder to its ``--include_path``."""
