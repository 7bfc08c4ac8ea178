"""Every option of a merge, as flags, YAML and Python have it."""

from fxmerge.config.merge_config import BY_TASK, EXCLUDING, MergeConfig, check_excluding, no_page, option_group
from fxmerge.config.values import parse_by_task, parse_data

__all__ = [
    "BY_TASK", "EXCLUDING", "MergeConfig", "check_excluding", "no_page", "option_group", "parse_by_task", "parse_data",
]  # fmt: skip
