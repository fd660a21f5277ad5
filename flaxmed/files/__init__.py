"""What comes from elsewhere and goes to disk: downloads, and files that are whole or not there."""

from flaxmed.files.web import check_url, download
from flaxmed.files.whole import cache_dir, is_writable, made_dir, make_dir, written_whole

__all__ = [
    "cache_dir",
    "check_url",
    "download",
    "is_writable",
    "made_dir",
    "make_dir",
    "written_whole",
]
