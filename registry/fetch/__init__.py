"""Bringing files from elsewhere: in parallel ranges, resumed after a kill, hashed while they arrive."""

from registry.fetch.fetcher import Fetcher
from registry.fetch.remote import Chunks, FetchInterrupted, RemoteFile

__all__ = ["Chunks", "FetchInterrupted", "Fetcher", "RemoteFile"]
