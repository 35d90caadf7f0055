"""Read a checkpoint's files: config, headers, tensor names, checksums. Imports no torch."""
