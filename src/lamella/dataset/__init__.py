"""A dataset of records that many workers write, each record once: shards, commits and runs."""

from lamella.dataset.commits import SHARDS, Commit, Dataset, DatasetError, File, TakenOver
from lamella.dataset.contents import Fault, clean, files, shards, verify
from lamella.dataset.driver import DatasetProgress, DatasetReport, Engine, WorkLost, last_run, sync_shards
from lamella.dataset.here import Here
from lamella.dataset.process import Process
from lamella.dataset.shard import run_shard
from lamella.dataset.work import Count, OnCount, Outcome, Read, Result, Work

__all__ = [
    "SHARDS",
    "Commit",
    "Count",
    "Dataset",
    "DatasetError",
    "DatasetProgress",
    "DatasetReport",
    "Engine",
    "Fault",
    "File",
    "Here",
    "OnCount",
    "Outcome",
    "Process",
    "Read",
    "Result",
    "TakenOver",
    "Work",
    "WorkLost",
    "clean",
    "files",
    "last_run",
    "run_shard",
    "shards",
    "sync_shards",
    "verify",
]
