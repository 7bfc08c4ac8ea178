"""Passes, their order and who watches them; and the extensions that they come from."""

from fxmerge.pipeline.passes import Pass, Pipeline, Stage, run_pass

__all__ = ["Pass", "Pipeline", "Stage", "run_pass"]
