"""Random models of timm and torchvision through the whole compiler: what is found, and that all of it is exact."""

from __future__ import annotations

import sys
from functools import partial
from importlib import metadata

from benchmarks.survey import Subject, parser, survey
from benchmarks.vision import build, models

REMARK = "The second parent is the program of the first with the weights of another seed."


def main() -> int:
    arguments = parser(__doc__ or "", "vision")
    arguments.set_defaults(limit=120.0)
    given = arguments.parse_args()
    try:
        import timm  # noqa: F401
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:  # a build of torchvision for another torch raises the latter
        reason = str(error).splitlines()[0]
        raise SystemExit(f"{reason}: pip install timm torchvision, in the versions made for this torch") from None
    subjects = [Subject(model.label, model.library, partial(build, model), trace_both=False) for model in models()]
    versions = {name: metadata.version(name) for name in ("timm", "torchvision")}
    return survey(given, subjects, **versions, remark=REMARK)


if __name__ == "__main__":
    sys.exit(main())
