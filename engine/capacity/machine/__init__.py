"""This machine and the cgroups around this process: memory, cores, the disk, and the page cache. No torch."""
