"""One interface, `Ops`, and three backends: reference (plain torch), native (C++ on a CPU), triton (CUDA)."""
