"""Passes, their order and who watches them; and the extensions that they come from."""

from fxmerge.pipeline.passes import Join, Known, Pass, Pipeline, Run, Stage, Together, Train, run_pass

__all__ = ["Join", "Known", "Pass", "Pipeline", "Run", "Stage", "Together", "Train", "run_pass"]
