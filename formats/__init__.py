"""Foreign annotation formats, one file each: read(source, ...) -> records of data.json, and how images are copied."""
