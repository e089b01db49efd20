"""Imported once by the process that `content.forked` forks: what the commands load, and none of it collected again in a fork."""

import gc

import matplotlib.pyplot  # noqa: F401
import open_clip  # noqa: F401
import pandas  # noqa: F401  # DuckDB imports it when it is there
import prefloop.cli
import prefloop.eval.stage
import prefloop.store.importers.run
import prefloop.store.runs
import prefloop.train.stage
import pydantic  # noqa: F401
import pytest  # noqa: F401
import typer.rich_utils  # noqa: F401
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion  # noqa: F401
from transformers.models.clip import modeling_clip  # noqa: F401

prefloop.store.runs.versions()  # reads the metadata of every package
gc.collect()
gc.freeze()
