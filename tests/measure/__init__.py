"""Programs that measure; run by hand, never by the test suite."""
